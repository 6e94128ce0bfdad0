"""The feed of a living run: the past, the present, every hole filled, and no harm to anybody when nobody looks."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tui_kernel import ToyKernel, toy_kernel

from midflight.kernel.client import Unreachable
from midflight.messages.live import ServiceDo
from midflight.messages.samples import LedgerGet, LedgerStatus
from midflight.tui import live
from midflight.tui.facts import Batch, Fact
from midflight.tui.live import LiveFeed
from midflight.tui.main import feed_of
from midflight.tui.model import RunModel

DEADLINE_S = 30.0


class Taken:
    """Everything a feed gave so far."""

    def __init__(self, kernel: ToyKernel) -> None:
        found = feed_of(kernel.run)
        assert isinstance(found, LiveFeed)
        self.feed = found
        self.facts: list[Fact] = []
        self.last = Batch()
        self.gap = False
        self.answers: set[str] = set()

    def until(self, found: Callable[[], object]) -> None:
        """Take until it is true; fails the test after a deadline."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            batch = self.feed.take()
            self.facts += batch.facts
            self.gap = self.gap or batch.gap
            self.answers |= {n for n in ("status", "knobs", "controllers", "ledger", "host") if getattr(batch, n)}
            self.last = batch
            if found():
                return
            assert time.monotonic() < deadline, (len(self.facts), batch)
            time.sleep(0.01)

    def seqs(self) -> list[int]:
        """Numbers of the events."""
        return [fact.seq for fact in self.facts]


def test_past_and_present_without_a_hole(tmp_path: Path) -> None:
    """What was journaled before, then what is published, each once and in order."""
    with toy_kernel(tmp_path / "run") as kernel:
        for step in range(50):
            kernel.emit("metrics", {"loss": 1.0}, step)
        taken = Taken(kernel)
        taken.feed.start()
        try:
            taken.until(lambda: len(taken.facts) >= 50)
            for step in range(50, 100):
                kernel.emit("metrics", {"loss": 1.0}, step)
            taken.until(lambda: len(taken.facts) >= 100)
        finally:
            taken.feed.stop()
        assert taken.seqs() == list(range(1, 101))
        assert [fact.step for fact in taken.facts] == list(range(100))
        assert not taken.gap


@pytest.mark.parametrize("ring", [20_000, 5])
def test_lost_events_come_from_the_kernel_or_the_journal(ring: int, tmp_path: Path) -> None:
    """A subscription that loses most of them; a kernel that remembers all, or only the last five."""
    with toy_kernel(tmp_path / "run", ring) as kernel:
        taken = Taken(kernel)
        taken.feed.start()
        try:
            taken.until(lambda: "status" in taken.answers)
            for number in range(300):
                kernel.emit("metrics", {"loss": 1.0}, number, live=number % 7 == 0)
            taken.until(lambda: len(taken.facts) >= 300)
        finally:
            taken.feed.stop()
        assert taken.seqs() == list(range(1, 301))
        assert not taken.gap


def test_what_nobody_holds_any_more_is_said(tmp_path: Path) -> None:
    """Neither the kernel nor the journal: the view says that it has a hole."""
    with toy_kernel(tmp_path / "run", 5) as kernel:
        kernel.emit("note", {"text": "first"})
        taken = Taken(kernel)
        taken.feed.start()
        try:
            taken.until(lambda: len(taken.facts) == 1 and "status" in taken.answers)
            kernel.run.journal.rename(tmp_path / "away")
            for number in range(30):
                kernel.emit("metrics", {"loss": 1.0}, number, live=False)
            taken.until(lambda: taken.facts[-1].seq == 31)
        finally:
            taken.feed.stop()
        assert taken.seqs() == [1, *range(27, 32)]
        assert taken.gap


def test_costly_answers_only_while_they_are_wanted(tmp_path: Path) -> None:
    """The ledger is asked when its screen is shown."""
    with toy_kernel(tmp_path / "run") as kernel:
        taken = Taken(kernel)
        taken.feed.start()
        try:
            taken.until(lambda: {"status", "knobs", "controllers"} <= taken.answers)
            assert not taken.answers & {"ledger", "host"}
            assert not any(isinstance(message, LedgerGet) for message in kernel.asked)
            taken.feed.want(True, True)
            taken.until(lambda: {"ledger", "host"} <= taken.answers)
            life = taken.feed.ask("data", LedgerGet(sample=700)).result(DEADLINE_S)
            assert isinstance(life, LedgerStatus)
            assert len(life.life) == 7
        finally:
            taken.feed.stop()


def test_a_question_without_an_answer_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its deadline; the link's age grows meanwhile."""
    monkeypatch.setattr(live, "DEADLINE_S", 0.3)
    with toy_kernel(tmp_path / "run") as kernel:
        taken = Taken(kernel)
        taken.feed.start()
        try:
            taken.until(lambda: "status" in taken.answers)
            kernel.mute = True
            asked = taken.feed.ask("ctl", ServiceDo(verb="pause", name="rollout"))
            with pytest.raises(Unreachable):
                asked.result(DEADLINE_S)
            taken.until(lambda: (taken.last.silent_s or 0) > 0.3)
            assert not taken.last.over
            kernel.mute = False
            taken.until(lambda: (taken.last.silent_s or 9) < 0.2)
        finally:
            taken.feed.stop()


def test_nobody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A screen that takes nothing: the feed keeps a bounded number, leaves the rest, and has all of it later."""
    monkeypatch.setattr(live, "KEPT", 100)
    full, wait = threading.Semaphore(0), live._Link.wait

    def counted(link: live._Link, seconds: float, wake: int, deaf: bool) -> bool:
        if deaf:
            full.release()
        return wait(link, seconds, wake, deaf)

    monkeypatch.setattr(live._Link, "wait", counted)
    with toy_kernel(tmp_path / "run") as kernel:
        taken = Taken(kernel)
        taken.feed.start()
        try:
            taken.until(lambda: "status" in taken.answers)
            for number in range(3000):
                kernel.emit("metrics", {"loss": 1.0}, number)
            assert all(full.acquire(timeout=10) for _ in range(5))  # turns in which it has no room
            assert len(taken.feed._batch.facts) < 3000
            taken.until(lambda: len(taken.facts) >= 3000)
        finally:
            taken.feed.stop()
        assert taken.seqs() == list(range(1, 3001))


def test_the_end_of_the_run_is_noticed(tmp_path: Path) -> None:
    """The lock tells; what was shown stays."""
    with toy_kernel(tmp_path / "run") as kernel:
        kernel.emit("metrics", {"loss": 1.0}, 1)
        taken = Taken(kernel)
        taken.feed.start()
        try:
            taken.until(lambda: "status" in taken.answers)
            kernel.mute = True
            kernel.run.release()
            taken.until(lambda: taken.last.over)
        finally:
            taken.feed.stop()
        assert taken.seqs() == [1]


def test_a_feed_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that ended without a word would look like a quiet run."""

    def broken(path: Path, after: int = 0) -> list[Fact]:
        raise KeyError("seq")

    monkeypatch.setattr(live, "read_facts", broken)
    with toy_kernel(tmp_path / "run") as kernel:
        taken = Taken(kernel)
        taken.feed.start()
        try:
            taken.until(lambda: taken.last.problem)
        finally:
            taken.feed.stop()
    model = RunModel()
    model.fold(taken.last)
    assert model.alarms() == ["nothing more will come: KeyError: 'seq'"]
