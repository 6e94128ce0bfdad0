"""Episodes of several turns: `interact`, a state per episode, and what the functions are given by name."""

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.reward_bench import Bench

from midflight.services.reward import Acted, Job, Pool, ProgramFault, Scored, Spec
from midflight.services.reward.config import RewardConfig
from midflight.services.reward.verdict import Outcome

HI = [{"role": "user", "content": "hi"}]
Ask = Callable[[str, Job], Outcome]


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """Run one job with a reward file."""
    opened: list[Pool] = []

    def score(code: str, job: Job) -> Outcome:
        file = tmp_path / "rewards.py"
        file.write_text(textwrap.dedent(code))
        pool = Pool(Spec(file, scratch=tmp_path))
        opened.append(pool)
        bench = Bench(pool, tmp_path)
        assert pool.submit(job)
        bench.until(lambda: bool(bench.outcomes))
        return bench.outcomes[job.id]

    yield score
    for pool in opened:
        pool.close()


def test_tools_speak_and_the_state_comes_back(ask: Ask) -> None:
    """An async `interact` is given the state, the answer and the call's key, because it names them."""
    code = """
        async def interact(messages, *, state, answer, call):
            state["calls"] = [*state.get("calls", []), call]
            return [{"role": "tool", "content": f"{answer} {len(messages)}"}]
        def reward_fn(messages, answer): return 0.0
    """
    outcome = ask(code, Job(7, HI, "x", interact=True, state={"calls": ["7:0"]}, call="7:1"))
    assert isinstance(outcome, Acted), outcome
    assert outcome.messages == [{"role": "tool", "content": "x 1"}]
    assert outcome.state == {"calls": ["7:0", "7:1"]}


@pytest.mark.parametrize(
    "parameters", ["messages, answer, state, call", "messages, answer, **named", "*row, state, call"]
)
def test_no_more_messages_means_the_reward(ask: Ask, parameters: str) -> None:
    """The same job goes on to `reward_fn`, which sees what `interact` left in the state."""
    code = f"""
        def interact(messages, state):
            state["seen"] = 3
            return []
        def reward_fn({parameters}):
            named = locals().get("named") or dict(state=state, call=call)
            return {{"seen": named["state"]["seen"], "key": float(named["call"] == "7:0")}}
    """
    outcome = ask(code, Job(7, HI, None, interact=True, call="7:0"))
    assert isinstance(outcome, Scored), outcome
    assert (outcome.rewards, outcome.state) == ({"seen": 3.0, "key": 1.0}, {"seen": 3})


@pytest.mark.parametrize("interact", ["def interact(messages): raise ValueError", ""])
def test_a_job_without_interaction_is_scored_at_once(ask: Ask, interact: str) -> None:
    """Nor is a file without `interact` at fault when it is asked to."""
    outcome = ask(f"{interact}\ndef reward_fn(messages, answer): return 1", Job(1, HI, None, interact=not interact))
    assert isinstance(outcome, Scored), outcome


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ("None", "interact returned None - expected a list of messages"),
        ("['hi']", "interact returned the message 'hi' - expected"),
        ("[{'role': 'tool'}]", "interact returned the message {'role': 'tool'} - expected"),
        ("[{'role': 'tool', 'content': 3}]", "role and content must be texts"),
        ("[{'role': 'assistant', 'content': 'x'}]", "only the model speaks for it"),
        ("[{'role': 'tool', 'content': 'x' * (1 << 20)}]", "at most 1048576 fit"),
        ("state.update(x={1}) or [{'role': 'tool', 'content': ''}]", "interact left a state that is not JSON"),
        ("state.update(x=float('nan')) or []", "reward_fn left a state that is not JSON"),
    ],
)
def test_what_is_no_message_is_the_programs_fault(ask: Ask, result: str, why: str) -> None:
    """It is never taken for an end of the episode."""
    code = f"def interact(messages, state): return {result}\ndef reward_fn(messages, answer): return 1"
    outcome = ask(code, Job(1, HI, None, interact=True))
    assert isinstance(outcome, ProgramFault), outcome
    assert outcome.blame == "returned"
    assert why in outcome.why


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def reward_fn(m, a): ...", False),
        ("def reward_fn(m, a): ...\nasync def interact(m): ...", True),
        ("from tools import *", True),
        ("from tools import reward_fn, act as interact", True),
    ],
)
def test_the_configuration_knows_of_interact_without_running_the_file(
    tmp_path: Path, code: str, expected: bool
) -> None:
    """Other services ask it whether episodes may have several turns."""
    (tmp_path / "rewards.py").write_text(code)
    assert RewardConfig(kind="reward", file=str(tmp_path / "rewards.py")).has_interact is expected
