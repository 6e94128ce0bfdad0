"""The decisions feed: one readable line for whatever happens, and nothing for what nobody reads."""

import asyncio

import pytest

from midflight.messages.base import Scalar
from midflight.tui import verbs
from midflight.tui.facts import Fact
from midflight.tui.feedlines import told_line
from midflight.tui.told import TELLERS, Told

KNOB: dict[str, Scalar] = {"knob": "kl.coef", "value": 0.2, "version": 3, "author": "kl#1", "reason": "kl 0.1"}
RULED: dict[str, Scalar] = {"slot": "kl", "name": "bang", "from": "kl#1", "to": "bang#7", "reason": "better"}
TELLS: list[tuple[str, dict[str, Scalar], str]] = [
    ("knob", KNOB | {"old": 0.1, "until_step": 9}, "kl.coef 0.1 -> 0.2 until step 9|kl 0.1"),
    ("knob", {"knob": "mode", "value": "pid", "author": "operator"}, "mode = pid|"),
    ("knob.granted", {"knob": "kl.coef", "owner": "kl#1"}, "kl.coef is held by kl#1|"),
    ("knob.released", {"knob": "kl.coef", "why": "kl#1 is gone"}, "kl.coef released|kl#1 is gone"),
    ("controller.promoted", RULED, "bang promoted in kl: kl#1 -> bang#7|better"),
    ("controller.rolled_back", RULED | {"from": "", "to": ""}, "bang rolled back in kl: nobody -> nobody|better"),
    ("controller.attached", RULED | {"reason": "as a shadow"}, "bang attached in kl|as a shadow"),
    ("controller.locked", {"slot": "kl", "name": "operator", "reason": "mine"}, "kl locked by hand|mine"),
    ("controller.param", {"field": "target_kl", "value": 0.1}, "uses target_kl = 0.1|"),
    ("swap", {"slot": "kl", "number": 2, "stage": "rolled_back", "why": "died"}, "swap 2 of kl: rolled back|died"),
    ("service.exit", {"name": "reward", "generation": 2, "code": 0, "cause": "exit code 0"},
     "reward#2 left|exit code 0"),
    ("service.exit", {"name": "reward", "generation": 2, "code": 1, "cause": "exit code 1"},
     "reward#2 died|exit code 1"),
    ("service.state", {"name": "reward", "generation": 2, "state": "running", "paused": True}, "reward#2 paused|"),
    ("service.state", {"name": "reward", "generation": 2, "state": "backoff", "cause": "boom"},
     "reward#2 backoff|boom"),
    ("service.failed", {"name": "reward", "why": "too often"}, "reward failed for good|too often"),
    ("note", {"level": "warn", "text": "disk full"}, "disk full|"),
    ("run.state", {"state": "stopping", "why": "Ctrl-C"}, "run stopping|Ctrl-C"),
    ("kernel.boot", {"generation": 2}, "the kernel is back (generation 2)|"),
    ("evaluation", {"eval/reward": 0.5, "n": 9}, "held-out reward 0.5|"),
    ("evaluation", {"n": 0, "refused": 16}, "held-out: all 16 samples were refused|"),
    ("checkpoint", {"step": 20}, "checkpoint of step 20|"),
]  # fmt: skip
SILENT: list[tuple[str, dict[str, Scalar]]] = [
    ("kernel.boot", {"generation": 1}),
    ("service.state", {"name": "reward", "generation": 1, "state": "running"}),
    ("metrics", {"loss": 1.0}),
]


@pytest.mark.parametrize(("topic", "body", "said"), TELLS)
def test_what_is_told(topic: str, body: dict[str, Scalar], said: str) -> None:
    """What, and why."""
    told = Told()
    told.fold(Fact(1, 1, "kernel", topic, 5, body))
    assert [f"{line.text}|{line.why}" for line in told.lines] == [said]
    assert said.partition("|")[0] in told_line(told.lines[0]).plain


@pytest.mark.parametrize(("topic", "body"), SILENT)
def test_what_is_not_told(topic: str, body: dict[str, Scalar]) -> None:
    """The ordinary course of things."""
    told = Told()
    told.fold(Fact(1, 1, "kernel", topic, 5, body))
    assert not told.lines


@pytest.mark.parametrize("topic", TELLERS)
def test_a_body_of_another_version_is_no_reason_to_fail(topic: str) -> None:
    """Every field may be missing, or of another type."""
    told = Told()
    told.fold(Fact(1, 1, "kernel", topic, None, {}))
    odd: dict[str, Scalar] = dict.fromkeys(("knob", "value", "old", "stage", "generation", "name", "text"), True)
    told.fold(Fact(2, 1, "", topic, None, odd))
    assert len(told.lines) <= 2


def test_stages_of_a_swap_are_one_line_without_a_count() -> None:
    """The newest stage, where the first one stood."""
    told = Told()
    for seq, stage in enumerate(("starting", "handing", "probation", "done")):
        told.fold(Fact(seq, 1, "kernel", "swap", None, {"slot": "kl", "number": 1, "stage": stage}))
    assert [(line.text, line.count) for line in told.lines] == [("swap 1 of kl: done", 1)]


def test_a_verb_runs_as_a_process() -> None:
    """Its exit code, and the end of what it said on both streams."""
    code, said = asyncio.run(verbs.run_verb(["get", "--run", "/nonexistent"]))
    assert code == 3
    assert said == ["midflight get: /nonexistent is not a run directory"]


def test_a_verb_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its deadline."""
    monkeypatch.setattr(verbs, "DEADLINE_S", 0.01)
    code, said = asyncio.run(verbs.run_verb(["doctor"]))
    assert (code, len(said)) == (-1, 1)
