"""Environments of other libraries in a reward file's place, played by the libraries themselves in real workers."""

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.reward_bench import Bench
from support.sandbox_bench import need

from midflight.kernel.cli.main import main
from midflight.services.reward import Acted, Job, Pool, ProgramFault, Scored, Spec, environments
from midflight.services.reward.config import RewardConfig
from midflight.services.reward.verdict import Outcome

HERE = Path(__file__).parents[1] / "support" / "environments"
START_S = 600.0
"""Importing these libraries takes 5 s of CPU time."""


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where an optional library is not installed."""
    there = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not there, reason=f"{package} is not installed: `make test-environments` has it")


@dataclass
class Player:
    """Plays episodes of one environment in one pool of workers, as the ledger has them played."""

    pool: Pool
    bench: Bench
    jobs: int = 0

    def ask(
        self, messages: list[dict[str, str]], answer: object, state: dict[str, object], *, interact: bool
    ) -> Outcome:
        """One call."""
        self.jobs += 1
        assert self.pool.submit(Job(self.jobs, messages, answer, interact=interact, state=state, call=f"0:{self.jobs}"))
        self.bench.until(lambda: self.jobs in self.bench.outcomes)
        return self.bench.outcomes[self.jobs]

    def episode(self, row: dict[str, Any], *words: str) -> tuple[list[dict[str, str]], Outcome]:
        """The model says `words`, one a turn, as long as it is answered; -> the conversation, and the last outcome."""
        messages, state = list(row["messages"]), dict[str, object]()
        for turn, text in enumerate(words):
            messages.append({"role": "assistant", "content": text})
            outcome = self.ask(messages, row["answer"], state, interact=turn + 1 < len(words))
            if not isinstance(outcome, Acted):
                return messages, outcome
            messages += outcome.messages
            state = outcome.state
        raise AssertionError("the last turn is scored")


Play = Callable[..., Player]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    """A pool whose workers play an environment of the test's own packages."""
    opened: list[Pool] = []

    def made(environment: str, level: str = "rlimits", **arguments: object) -> Player:
        file = tmp_path / "environment.py"
        file.write_text(environments.reward_file(environment, arguments))
        spec = Spec(file, scratch=tmp_path, level=level, python_path=(str(HERE),), time_limit_s=60)
        pool = Pool(spec, start_limit_s=START_S)
        opened.append(pool)
        bench = Bench(pool, tmp_path, patience_s=START_S)
        bench.until(lambda: bool(pool.ready or pool.broken))
        assert pool.broken is None
        return Player(pool, bench)

    yield made
    for pool in opened:
        pool.close()


@pytest.fixture
def rows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """`midflight rows`, in this process."""

    def written(environment: str, *options: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "path", [*sys.path, str(HERE)])
        code = main(["rows", environment, *options])
        out, err = capsys.readouterr()
        assert code == 0, err
        return [json.loads(line) for line in out.splitlines()]

    return written


def call(function: str, /, **arguments: str) -> str:
    """A call as a model writes it."""
    return f"<tool_call>{json.dumps({'name': function, 'arguments': arguments})}</tool_call>"


@needs("verifiers")
def test_a_taskset_of_verifiers_with_tools(play: Play, rows: Callable[..., list[dict[str, Any]]]) -> None:
    """Rows from its tasks, tools with a state that outlives the worker's call, rewards by name and weight."""
    need("namespaces")
    told = rows("verifiers:mf-sums", "--args", '{"count": 2}', "--skip", "1")
    (row,) = told
    assert [one["role"] for one in row["messages"]] == ["system", "user"]
    assert '"name": "look_up"' in row["messages"][0]["content"]
    assert row["messages"][1]["content"] == "a1 + b1"
    player = play("verifiers:mf-sums", "namespaces", count=2)
    both = call("look_up", name="a1") + call("look_up", name="b1")
    said, outcome = player.episode(row, both, call("look_up", name="zz"), "11")
    assert [one["content"] for one in said if one["role"] == "tool"][:2] == ["1", "10"]
    assert said[-2]["role"] == "tool"
    assert "zz" in said[-2]["content"]
    assert isinstance(outcome, Scored), outcome
    assert outcome.rewards == {"right": 2.0, "asked": 1.0, "calls": pytest.approx(-0.3), "spoke": 3.0}
    _, outcome = player.episode(row, "12", "never said")
    assert isinstance(outcome, Scored), outcome
    assert outcome.rewards == {"right": 0.0, "asked": 0.0, "calls": 0.0, "spoke": 1.0}


@needs("verifiers")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<tool_call>look</tool_call>", "error: no call"),
        (call("look"), "error: no function 'look'; there are look_up"),
        (call("look_up"), "error: "),
    ],
)
def test_a_call_that_cannot_be_made_is_told_to_the_model(play: Play, text: str, why: str) -> None:
    """It is the model's mistake, and refuses nothing."""
    player = play("verifiers:mf-sums")
    row = {"messages": [{"role": "user", "content": "a1 + b1"}], "answer": {"prompt": "a1 + b1", "table": {"a1": 1}}}
    said, _ = player.episode(row, text, "1")
    assert said[-2]["content"].startswith(why)


@needs("verifiers")
def test_an_env_of_verifiers_is_played_again_every_turn(play: Play, rows: Callable[..., list[dict[str, Any]]]) -> None:
    """Its own loop speaks as the user; task, env and finalize all score; an episode that is cut off is over for it."""
    (row,) = rows("verifiers:mf-guess", "--count", "1")
    player = play("verifiers:mf-guess")
    said, outcome = player.episode(row, "0", "99", "7", "never said")
    assert [one["content"] for one in said if one["role"] == "user"] == ["Guess.", "higher", "lower"]
    assert isinstance(outcome, Scored), outcome
    assert outcome.rewards == {"short": pytest.approx(1 / 3), "found": 1.0, "judged": 0.5}
    _, outcome = player.episode(row, "0")
    assert isinstance(outcome, Scored), outcome
    assert outcome.rewards == {"short": 1.0, "found": 0.0, "judged": 0.5}
    other = [*row["messages"], {"role": "assistant", "content": "0"}, {"role": "user", "content": "warmer"}]
    outcome = player.ask([*other, {"role": "assistant", "content": "7"}], row["answer"], {}, interact=True)
    assert isinstance(outcome, ProgramFault), outcome
    assert "did not repeat itself" in outcome.why


@needs("verifiers")
def test_what_verifiers_plays_in_a_box_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a run begins, with the function that wants what there is not."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(HERE)])
    assert main(["rows", "verifiers:mf-box"]) == 1
    assert "reward works wants runtime; there is only task, trace here" in capsys.readouterr().err


@needs("openenv")
def test_an_environment_of_openenv(play: Play, rows: Callable[..., list[dict[str, Any]]]) -> None:
    """A row a seed; its words are the action's one field; rewards added up, or those of its rubrics by name."""
    arguments = {"arguments": {"top": 6}, "instructions": "Climb to 6."}
    row = rows("openenv:mf_stairs:Stairs", "--count", "2", "--args", json.dumps(arguments))[1]
    assert row["messages"] == [{"role": "user", "content": 'Climb to 6.\n{"height": 0}'}]
    player = play("openenv:mf_stairs:Stairs", "namespaces", **arguments)
    said, outcome = player.episode(row, "2", "up", "4", "never said")
    assert [one["content"] for one in said if one["role"] == "user"][1:] == ['{"height": 2}'] * 2
    assert isinstance(outcome, Scored), outcome
    assert outcome.rewards == {"reward": pytest.approx(2 - 0.25 * 4)}
    by_name = play("openenv:mf_stairs:Stairs", objectives=["up", "brief"], **arguments)
    _, outcome = by_name.episode(row, "2", "up", "4", "never said")
    assert isinstance(outcome, Scored), outcome
    assert outcome.rewards == {"up": 2.0, "brief": -1.0}


@needs("openenv")
def test_an_environment_of_openenv_must_repeat_itself(play: Play) -> None:
    """Else the sample is refused: what the model was answered would not be what it is rewarded for."""
    player = play("openenv:mf_stairs:Careless")
    row = {"messages": [{"role": "user", "content": "?"}], "answer": {"seed": 0}}
    _, outcome = player.episode(row, "1", "1", "1")
    assert isinstance(outcome, ProgramFault), outcome
    assert "did not repeat itself" in outcome.why


@needs("openenv")
def test_words_that_are_no_action_are_told_to_the_model(play: Play) -> None:
    """With a JSON object for an action; the environment takes no step."""
    player = play("openenv:mf_stairs:Stairs", action_field="", shows="height")
    row = {"messages": [{"role": "user", "content": "?"}], "answer": {"seed": 1}}
    said, outcome = player.episode(row, "one", '{"words": "1"}', '{"words": "9"}', "never said")
    answers = [one["content"] for one in said if one["role"] == "user"][1:]
    assert answers[0].startswith("error: ")
    assert answers[1] == "1"
    assert isinstance(outcome, Scored), outcome


OUTSIDE = """
class Made:
    def __init__(self, name, arguments):
        self.name, self.most = name, arguments["most"]
    def rows(self, count):
        for n in range(count):
            yield {"messages": [{"role": "user", "content": f"{self.name} {n}"}], "answer": n}
    def interact(self, messages, state):
        state["n"] = state.get("n", 0) + 1
        return [{"role": "user", "content": "more"}] if state["n"] < self.most else []
    def reward_fn(self, messages, answer, state):
        return {"answer": answer, "asked": state["n"]}
load = Made
"""


def test_an_adapter_from_outside(
    play: Play, rows: Callable[..., list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package's entry point is all it takes; the worker imports it, and nothing of midflight."""
    outside(monkeypatch)
    (tmp_path / "mf_outside.py").write_text(OUTSIDE)
    monkeypatch.setattr(f"{__name__}.HERE", tmp_path)
    row = rows("mine:game", "--count", "3", "--args", '{"most": 2}')[2]
    assert row == {"messages": [{"role": "user", "content": "game 2"}], "answer": 2}
    said, outcome = play("mine:game", most=2).episode(row, "a", "b", "never said")
    assert [one["content"] for one in said] == ["game 2", "a", "more", "b"]
    assert isinstance(outcome, Scored), outcome
    assert outcome.rewards == {"answer": 2.0, "asked": 2.0}


def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with an adapter."""
    point = EntryPoint("mine", "mf_outside:load", environments.GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ("verifiers", "want ADAPTER:NAME, such as verifiers:my-tasks"),
        ("verifiers:", "want ADAPTER:NAME"),
        ("gym:CartPole", "no adapter 'gym' for environments; there are: mine, openenv, verifiers"),
        ("verifiers:x", "verifiers is not installed here - pip install 'midflight[verifiers]'"),
        ("openenv:x:X", "openenv is not installed here - pip install 'midflight[openenv]'"),
    ],
)
def test_what_is_not_there_is_said_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, environment: str, why: str
) -> None:
    """By the configuration, without an import of anything."""
    outside(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValidationError, match=why.replace("[", r"\[")):
        RewardConfig(kind="reward", environment=environment)


def test_a_reward_server_has_a_file_or_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them; an environment always takes turns, and nobody vouches for what it runs."""
    outside(monkeypatch)
    (tmp_path / "rewards.py").write_text("def reward_fn(messages, answer): return 1")
    for both in ({}, {"file": str(tmp_path / "rewards.py"), "environment": "mine:game"}):
        with pytest.raises(ValidationError, match="give one of `file` and `environment`"):
            RewardConfig.model_validate({"kind": "reward", **both})
    config = RewardConfig(kind="reward", environment="mine:game")
    assert (config.has_interact, config.vouched) == (True, False)
