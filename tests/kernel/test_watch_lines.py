"""What the terminal that started a run prints of an evaluation round, and while the run ends."""

from typing import Any, cast

import pytest

from midflight.kernel.cli.ending import waits_for
from midflight.kernel.cli.ps import _cells, below
from midflight.kernel.cli.watch import QUIET_S, SHOWN, Watch, spread
from midflight.kernel.launch import Launched
from midflight.messages.control import ServiceStatus, Wait
from midflight.messages.events import Event


class Launch:
    """As much of a launch as a line needs."""

    resumed = False


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"eval/reward": 0.5, "n": 16, "refused": 0}, "held-out reward 0.500 at step 5 (16 prompts)"),
        ({"eval/reward": 0.5, "n": 12, "refused": 4}, "held-out reward 0.500 at step 5 (12 prompts, 4 refused)"),
        ({"eval/nll": 0.25, "n": 12, "refused": 0}, "held-out nll 0.250 at step 5 (12 rows)"),
        ({"n": 0, "refused": 16}, "held-out: all 16 samples were refused, at step 5"),
    ],
)
def test_an_evaluation_round_says_what_was_refused(
    body: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when that was everything."""
    watch = Watch(cast(Launched, Launch()))
    watch._on_evaluation(Event(**{**Event.EXAMPLE, "topic": "evaluation", "step": 5, "body": body}))
    assert line in capsys.readouterr().out.splitlines()


def service(name: str, state: str, **more: Any) -> ServiceStatus:
    """One line of `midflight ps`."""
    whole: dict[str, Any] = {
        "generation": 2,
        "kind": name,
        "pid": 7,
        "up_s": 1.0,
        "seen_s": 0.1,
        "restarts": 1,
        "progress": 3,
    }
    return ServiceStatus(name=name, state=state, **(whole | more))


def test_an_end_names_what_it_waits_for() -> None:
    """Who was told to end and has not; then who is left; then nobody."""
    asked = service("learner", "draining", phase="checkpoint", waits=[Wait(name="committed", left_s=None)])
    left, gone = service("ledger", "running"), service("rollout", "stopped")
    guest = service("kl", "ready", attached=True)
    assert waits_for([asked, left, gone, guest]) == "learner#2 (draining, checkpoint, waits for committed)"
    assert waits_for([left, gone, guest]) == "ledger#2 (running)"
    assert waits_for([gone]) == "the kernel"


def test_a_swapped_service_has_its_kind() -> None:
    """Where it is not what the topology says."""
    assert _cells(service("rollout", "running", kind="sglang", part="rollout.1"))[0] == "rollout#2 (sglang)"
    assert _cells(service("rollout", "running"))[0] == "rollout#2"


def test_below_the_table_are_ranks_and_the_last_end() -> None:
    """While the next one starts, too; not when that works, nor at a first start."""
    ranks = {"step": 3, "ranks": "0-1 of 2 (pids 7 8)"}
    assert below(service("learner", "running", stats=ranks, cause="exit code 1")) == [
        "learner: ranks 0-1 of 2 (pids 7 8)"
    ]
    assert _cells(service("learner", "running", stats=ranks))[6] == "step=3"
    for state in ("starting", "loading"):
        told = below(service("learner", state, cause="killed by SIGKILL"))
        assert told == ["learner: the one before ended: killed by SIGKILL"]
    assert below(service("learner", "backoff", cause="killed by SIGKILL")) == ["learner: killed by SIGKILL"]
    assert below(service("learner", "starting", restarts=0, cause="asked")) == []


@pytest.mark.parametrize(("step", "printed"), [(5, True), (7, False), (103, True)])
def test_a_trainer_without_rewards_gets_about_twenty_lines(
    step: int, printed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers that come first, and the last step in any case."""
    watch = Watch(cast(Launched, Launch()))
    body = {"loss": 0.5, "accuracy": 0.75, "a": 1.0, "b": 1.0, "c": 1.0, "lr": 1.0, "of": 103.0, "train_s": 0.1}
    watch._on_metrics(Event(**{**Event.EXAMPLE, "topic": "metrics", "step": step, "body": body}))
    lines = capsys.readouterr().out.splitlines()
    told = "loss 0.500 accuracy 0.750 a 1.000 b 1.000 c 1.000 train 0.100s"
    assert lines == ([f"step {step}/103 {told}"] if printed else [])


def test_a_long_run_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step in half a million, of which 25,000 have no line of their own: one a QUIET_S."""
    watch = Watch(cast(Launched, Launch()))
    clock = watch.began
    monkeypatch.setattr("midflight.kernel.cli.watch.time.monotonic", lambda: clock)
    for step in range(1, 8):
        clock += QUIET_S / 2.5
        body = {"loss": 0.5, "of": 500_000.0}
        watch._on_metrics(Event(**{**Event.EXAMPLE, "topic": "metrics", "step": step, "body": body}))
    assert [line.split("/")[0] for line in capsys.readouterr().out.splitlines()] == ["step 3", "step 6"]


@pytest.mark.parametrize("number", [1, 2, SHOWN, SHOWN + 1, 200])
def test_a_long_runs_last_words_are_a_line(number: int) -> None:
    """The first and the last evaluation, and some between, in order."""
    every = [(step, step / 10) for step in range(number)]
    shown = spread(every)
    assert len(shown) == min(number, SHOWN)
    assert (shown[0], shown[-1]) == (every[0], every[-1])
    assert shown == sorted(set(shown))
