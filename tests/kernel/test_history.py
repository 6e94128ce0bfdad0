"""What was changed in a run: told from a journal that the kernel's own counters wrote."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from midflight.kernel.cli.history import _row, condensed
from midflight.kernel.cli.main import main
from midflight.kernel.history import Change, History
from midflight.kernel.journal import Journal
from midflight.kernel.journal_files import JournalTail
from midflight.kernel.knob_desk import KnobDesk
from midflight.kernel.mail import Mail
from midflight.kernel.node import Letter
from midflight.kernel.rundir import RunDir
from midflight.kernel.stream import Stream
from midflight.messages.base import Scalar
from midflight.messages.knobs import KnobAcquire, KnobApplied, KnobDeclaration, KnobRelease, KnobSet

COEF = KnobDeclaration(name="kl.coef", kind="float", unit="", default=0.2, low=0.0, high=10.0, description="d")
TARGET = KnobDeclaration(name="kl.target_kl", kind="float", unit="", default=0.1, low=0.0, high=1.0, description="d")
RATE = KnobDeclaration(name="optim.lr", kind="float", unit="", default=1e-3, low=0.0, high=1.0, description="d")


class Silent:
    """Nobody listens."""

    def send(self, *ignored: object, **more: object) -> None:
        """Nothing."""


class From:
    """A letter's sender; answers are kept."""

    def __init__(self, sender: str) -> None:
        self.sender = sender
        self.answers: list[object] = []

    def reply(self, message: object) -> None:
        """Keep it."""
        self.answers.append(message)


class Run:
    """The kernel's counters over a journal on disk."""

    def __init__(self, path: Path, **bounds: int) -> None:
        self.folder = RunDir(path).create().hold()
        self.folder.release()
        self.journal = Journal(self.folder.journal, dict, **bounds)
        self.stream = Stream(cast(Mail, Silent()), self.journal)
        self.desk = KnobDesk(self.stream, self.journal, lambda owner, message: None)
        self.desk.declare("learner", [COEF, RATE])
        self.desk.declare("kl", [TARGET])
        for name in ("learner", "kl"):
            self.tell("service.state", name=name, slot=name, state="running")

    def tell(self, topic: str, **body: Scalar) -> None:
        """The kernel says so."""
        self.stream.emit("kernel", topic, {name.removesuffix("_"): value for name, value in body.items()})
        self.stream.flush()

    def step(self, number: int) -> None:
        """A training step is done."""
        self.stream.emit("learner#1", "metrics", {"kl": 0.1}, step=number)
        self.stream.flush()

    def by(self, sender: str) -> Letter:
        """A letter of that sender."""
        return cast(Letter, From(sender))

    def set(self, knob: str, value: float, author: str, why: str, take: bool = False) -> None:
        """By a controller, which holds the knob, or by a person."""
        epoch = self.desk.table.knobs[knob].epoch if "#" in author else None
        message = KnobSet(knob=knob, value=value, epoch=epoch, reason=why, take=take)
        self.desk.set(message, self.by(author))

    def applied(self, knob: str, step: int) -> None:
        """The learner uses the newest value from this step on."""
        version = self.desk.table.knobs[knob].version
        self.desk.applied(KnobApplied(knob=knob, version=version, step=step), "learner#1", ["learner#1"])

    def history(self) -> History:
        """The fold of the journal as it is now."""
        history = History()
        with JournalTail(self.folder.journal) as tail:
            for record in tail.read():
                history.take(record)
        return history

    def told(self) -> list[tuple[Any, ...]]:
        """The changes without numbers and clocks."""
        return [(c.step, c.what, c.subject, c.old, c.new, c.by, c.why, c.since) for c in self.history().changes]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Knobs of a learner and of a controller, nothing set yet."""
    return Run(tmp_path)


def test_values_and_owners(run: Run) -> None:
    """Who held a knob, what was set from what to what, why, and since when; the first value's old one is known too."""
    run.desk.acquire(KnobAcquire(knob="kl.coef"), run.by("kl#1"))
    run.step(1)
    run.set("kl.coef", 0.3, "kl#1", "kl is high")
    run.applied("kl.coef", 2)
    run.step(2)
    run.set("kl.coef", 0.4, "kl#1", "higher")
    run.set("kl.coef", 0.5, "operator", "by hand", take=True)
    run.applied("kl.coef", 3)
    run.step(3)
    run.desk.release(KnobRelease(knob="kl.coef"), run.by("cli-1#7"))
    run.desk.gone("kl#1", "died")
    assert run.told() == [
        (0, "granted", "kl.coef", None, "kl#1", "", "", None),
        (1, "set", "kl.coef", 0.2, 0.3, "kl#1", "kl is high", 2),
        (2, "set", "kl.coef", 0.3, 0.4, "kl#1", "higher", None),
        (2, "granted", "kl.coef", "kl#1", "operator", "", "", None),
        (2, "set", "kl.coef", 0.4, 0.5, "operator", "by hand", 3),
        (3, "granted", "kl.coef", "operator", "kl#1", "", "", None),
        (3, "released", "kl.coef", "kl#1", None, "", "kl#1 died", None),
    ]


def test_values_that_overtake_each_other(run: Run) -> None:
    """Each that came into force says since when, also when a newer one was on its way already."""
    run.set("optim.lr", 0.1, "operator", "")
    run.desk.applied(KnobApplied(knob="optim.lr", version=1, step=4), "learner#1", ["learner#1"])
    for value in (0.2, 0.3, 0.4):
        run.set("optim.lr", value, "operator", "")
    run.desk.applied(KnobApplied(knob="optim.lr", version=3, step=7), "learner#1", ["learner#1"])
    run.desk.applied(KnobApplied(knob="optim.lr", version=4, step=8), "learner#1", ["learner#1"])
    assert [(told[4], told[7]) for told in run.told()] == [(0.1, 4), (0.2, None), (0.3, 7), (0.4, 8)]


def test_a_value_moved_by_a_declaration(run: Run) -> None:
    """Another implementation of a slot brings its own default: that is a change, and not a person's."""
    run.set("kl.target_kl", 0.3, "operator", "")
    run.desk.declare("kl", [TARGET.model_copy(update={"default": 0.05})])
    run.desk.declare("kl", [TARGET.model_copy(update={"default": 0.05})])
    assert [told[1:6] for told in run.told()] == [
        ("set", "kl.target_kl", 0.1, 0.3, "operator"),
        ("declared", "kl.target_kl", 0.3, 0.05, "kernel"),
    ]


def test_who_waits_for_a_knob_is_no_change(run: Run) -> None:
    """A grant that only changes the queue is left out."""
    run.desk.acquire(KnobAcquire(knob="kl.coef"), run.by("kl#1"))
    run.desk.acquire(KnobAcquire(knob="kl.coef"), run.by("bang#1"))
    assert len(run.told()) == 1


def test_swaps_and_standings(run: Run) -> None:
    """A swap is one change that has come so far; controllers come, rule, fall and go."""
    swap: dict[str, Scalar] = {"slot": "kl", "number": 1, "name": "kl", "part": "kl.1", "former": "", "reason": "try"}
    swap |= {"kind": "mpo", "former_kind": "kl"}
    run.step(4)
    run.tell("swap", stage="starting", why="", **swap)
    run.step(5)
    run.tell("swap", stage="rolled_back", why="it died", **swap)
    for verb, was, to in (
        ("attached", "", "bang#9"), ("promoted", "kl#1", "bang#9"), ("rolled_back", "bang#9", "kl#1"),
        ("locked", "", "operator"), ("unlocked", "operator", ""), ("detached", "bang#9", ""),
    ):  # fmt: skip
        body: dict[str, Scalar] = {"slot": "kl", "name": "bang", "from_": was, "to": to, "reason": "so"}
        run.tell(f"controller.{verb}", **body)
    assert run.told() == [
        (4, "swap", "kl", "", "kl.1", "operator", "try; it died", None),
        (5, "attached", "bang", None, "bang#9", "", "so", None),
        (5, "promoted", "bang", "kl#1", "bang#9", "operator", "so", None),
        (5, "rolled back", "bang", "bang#9", "kl#1", "operator", "so", None),
        (5, "locked", "kl", None, "operator", "operator", "so", None),
        (5, "unlocked", "kl", "operator", None, "operator", "so", None),
        (5, "detached", "bang", "bang#9", None, "", "so", None),
    ]
    change = run.history().changes[0]
    assert change.stage == "rolled_back"
    assert _row([change])[4] == "topology (kl) -> kl.1 (mpo)"


def test_what_others_say_is_no_change(run: Run) -> None:
    """Only the kernel tells of changes: a service's event with such a name is none."""
    run.stream.emit("rollout-0#1", "knob", {"knob": "kl.coef", "value": 3.0})
    run.stream.emit("rollout-0#1", "swap", {})
    run.stream.flush()
    assert run.told() == []


def test_slots(run: Run) -> None:
    """A change concerns the slot that applies the knob, those that held it, and its author's."""
    run.stream.emit("bang#9", "controller.joined", {"slot": "kl"})
    run.set("kl.coef", 0.3, "operator", "free")
    run.desk.acquire(KnobAcquire(knob="kl.coef"), run.by("bang#9"))
    run.set("kl.coef", 0.4, "operator", "taken", take=True)
    run.set("optim.lr", 0.1, "operator", "")
    assert [(c.subject, sorted(c.slots)) for c in run.history().changes] == [
        ("kl.coef", ["learner"]),
        ("kl.coef", ["kl", "learner"]),
        ("kl.coef", ["kl", "learner"]),
        ("kl.coef", ["kl", "learner"]),
        ("optim.lr", ["learner"]),
    ]


def test_over_files_and_dropped_ones(tmp_path: Path) -> None:
    """The fold goes over all files; where the oldest were dropped it says from which event on it tells."""
    run = Run(tmp_path / "all", max_bytes=4000)
    short = Run(tmp_path / "short", max_bytes=4000, keep_bytes=8000)
    for one in (run, short):
        one.desk.acquire(KnobAcquire(knob="kl.coef"), one.by("kl#1"))
        for number in range(1, 100):
            one.step(number)
            one.set("kl.coef", number / 100, "kl#1", "so")
            one.applied("kl.coef", number + 1)
    assert [c.since for c in run.history().changes[1:]] == list(range(2, 101))
    assert run.history().first == 1
    rest = short.history()
    assert [(c.old, c.new) for c in rest.changes] == [
        (c.old, c.new) for c in run.history().changes[-len(rest.changes) :]
    ]
    assert (rest.first or 0) > 1


def _shown(capsys: pytest.CaptureFixture[str], run: Run, *arguments: str) -> str:
    assert main(["history", "--run", str(run.folder.path), *arguments]) == 0
    return capsys.readouterr().out


def test_verb(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Filters, one line for what a controller sets step by step, and JSON with every change; the run is over."""
    assert "nothing" in _shown(capsys, run)
    run.desk.acquire(KnobAcquire(knob="kl.coef"), run.by("kl#1"))
    for number in range(1, 10):
        run.step(number)
        run.set("kl.coef", number / 10, "kl#1", f"step {number}")
        run.applied("kl.coef", number + 1)
    run.set("optim.lr", 0.5, "operator", "bold\x1b[31m")
    lines = _shown(capsys, run).splitlines()
    assert len(lines) == 4
    assert lines[2].split()[:1] == ["1..9"]
    assert lines[2].split()[2:] == ["set", "x9", "kl.coef", "0.2", "->", "0.9", "kl#1", "2..10", "step", "9"]
    assert "\x1b" not in lines[3]
    assert len(_shown(capsys, run, "kl.").splitlines()) == 11
    assert len(_shown(capsys, run, "kl.", "--since-step", "9").splitlines()) == 3
    assert len(_shown(capsys, run, "--slot", "kl").splitlines()) == 3
    assert _shown(capsys, run, "--slot", "nobody") == "nothing was changed\n"
    data = json.loads(_shown(capsys, run, "--json", "optim"))
    assert [(c["old"], c["new"], c["slots"]) for c in data["changes"]] == [(0.001, 0.5, ["learner"])]
    assert (data["first_event"], data["damaged_bytes"]) == (1, 0)


def test_a_person_sets_each_value_for_itself() -> None:
    """Only a process's values are put together, and only until somebody else changes the knob."""
    authors = ["kl#1", "kl#1", "operator", "operator", "kl#1", "kl#2", "kl#2"]
    changes = [Change(i, 0, 0, "set", "kl.coef", 0, i, author, "") for i, author in enumerate(authors)]
    assert [[c.new for c in group] for group in condensed(changes)] == [[0, 1], [2], [3], [4], [5, 6]]
