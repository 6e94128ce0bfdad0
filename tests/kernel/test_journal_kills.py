"""The journal's writer is killed between any two system calls, and within a write: what was flushed is told, once."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.kernel import journal as journal_module
from midflight.kernel.journal import Journal
from midflight.kernel.journal_files import JournalTail, read_events
from midflight.kernel.journal_reader import recover
from midflight.kernel.journal_segments import closed_numbers

CALLS = {"open", "pwrite", "ftruncate", "unlink", "link", "replace", "fsync", "fdatasync", "close"}


class Killed(BaseException):
    """The process is no more."""


class Mortal:
    """`os` as the writer sees it: the process dies before its n-th call, or the disk refuses now and then."""

    def __init__(self, rng: random.Random, lives: int, refusals: float = 0.0) -> None:
        self.rng, self.left, self.refusals = rng, lives, refusals
        self.path = os.path

    def __getattr__(self, name: str) -> Any:
        real: Callable[..., Any] = getattr(os, name)
        return (lambda *args: self._call(name, real, *args)) if name in CALLS else real

    def _call(self, name: str, real: Callable[..., Any], *args: Any) -> Any:
        self.left -= 1
        dead = self.left == 0
        if name == "pwrite" and (dead or self.rng.random() < self.refusals):
            fd, data, at = args
            written = os.pwrite(fd, data[: self.rng.randrange(len(data))], at)
            if not dead:
                return written
        if dead:
            raise Killed
        if name != "close" and self.rng.random() < self.refusals:
            raise OSError(errno.ENOSPC, name)
        return real(*args)


def newest(path: Path) -> int:
    """Number of the newest event, as a successor recovers it."""
    base, rest = recover(path) if path.exists() else (None, [])
    numbers: list[int] = [(base or {"newest": 0})["newest"], *(record["seq"] for record in rest)]
    return max(numbers)


class Kernel:
    """A writer with a state: how many events there were. Its successor goes on from what it can recover."""

    def __init__(self, path: Path, life: int, **bounds: int) -> None:
        self.path, self.life = path, life
        self.newest = newest(path)
        self.journal = Journal(path, self._snapshot, **bounds)

    def _snapshot(self) -> object:
        return {"newest": self.newest, "pad": "x" * 30}

    def emit(self, size: int) -> None:
        """One event; metrics of a step every third time."""
        self.newest += 1
        topic, step = ("metrics", self.newest // 3) if self.newest % 3 == 0 else ("note", None)
        head = {"t": "event", "stream": "one", "seq": self.newest, "ns": 0, "source": "x", "topic": topic, "step": step}
        self.journal.append({**head, "body": {"life": self.life, "pad": "x" * size}})


def lives(
    folder: Path, seed: int, kills: list[int], tail: JournalTail | None = None, **bounds: int
) -> tuple[dict[int, int], list[int]]:
    """Live and die so often; -> event number -> life of every flushed event, and the numbers a tail saw."""
    rng, path = random.Random(seed), folder / "journal.bin"
    acked: dict[int, int] = {}
    seen: list[int] = []
    for life, left in enumerate([*kills, 0]):
        mortal = Mortal(rng, left)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal_module, "os", mortal)
            kernel = None
            try:
                kernel = Kernel(path, life, **bounds)
                assert kernel.newest >= max(acked, default=0)
                acked = {number: of for number, of in acked.items() if number <= kernel.newest}
                first = kernel.newest + 1
                for _ in range(40):
                    kernel.emit(rng.choice((0, 10, 200, 700)))
                    if rng.random() < 0.5 and kernel.journal.flush():
                        acked.update(dict.fromkeys(range(first, kernel.newest + 1), life))
                        first = kernel.newest + 1
                    if tail and rng.random() < 0.1:
                        seen += [record["seq"] for record in tail.read()]
                kernel.journal.close()
                acked.update(dict.fromkeys(range(first, kernel.newest + 1), life))
            except Killed:
                if kernel and kernel.journal._fd >= 0:
                    os.close(kernel.journal._fd)
    return acked, seen


@given(seed=st.integers(0, 1 << 32), kills=st.lists(st.integers(1, 120), max_size=8))
@settings(max_examples=80, deadline=None)
def test_kills_at_any_moment(tmp_path_factory: pytest.TempPathFactory, seed: int, kills: list[int]) -> None:
    """Every flushed event is told exactly once and as it was written, in order, from wherever one begins."""
    folder = tmp_path_factory.mktemp("kills")
    with JournalTail(folder / "journal.bin") as tail:
        acked, seen = lives(folder, seed, kills, tail, max_bytes=1500)
        seen += [record["seq"] for record in tail.read()]
    told = {event["seq"]: event for event in read_events(folder)}
    assert [event["seq"] for event in read_events(folder)] == list(range(1, len(told) + 1)) == seen
    assert {number: told[number]["body"]["life"] for number in acked} == acked
    after = random.Random(seed).randrange(len(told))
    assert [event["seq"] for event in read_events(folder, after=after)] == list(range(after + 1, len(told) + 1))
    step = random.Random(seed).randrange(1, 2 + len(told) // 3)
    assert [event["seq"] for event in read_events(folder, from_step=step)] == list(range(3 * step, len(told) + 1))


@given(seed=st.integers(0, 1 << 32), kills=st.lists(st.integers(1, 120), max_size=8))
@settings(max_examples=30, deadline=None)
def test_kills_while_old_files_are_dropped(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kills: list[int]
) -> None:
    """Within the bound, whatever happens: what is told has no hole and ends with the newest."""
    folder = tmp_path_factory.mktemp("drops")
    acked, _ = lives(folder, seed, kills, max_bytes=1500, keep_bytes=4000)
    told = [event["seq"] for event in read_events(folder)]
    assert told == list(range(told[0], told[-1] + 1))
    assert told[-1] >= max(acked)
    closed = [path for path in folder.iterdir() if path.name.startswith("journal.0")]
    assert len(closed) == len(closed_numbers(folder / "journal.bin"))
    assert sum(path.stat().st_size for path in sorted(closed)[1:]) <= 4000


def test_kill_at_each_call_of_a_rotation(tmp_path: Path) -> None:
    """From its first system call to its last, one after another; no half-made file stays behind for ever."""
    for left in range(1, 60):
        folder = tmp_path / str(left)
        folder.mkdir()
        acked, _ = lives(folder, 7, [left], max_bytes=1500)
        assert [event["seq"] for event in read_events(folder)] == list(range(1, max(acked) + 1))
        assert not (folder / "journal.bin.new").exists()
        inodes = [path.stat().st_ino for path in folder.iterdir()]
        assert len(set(inodes)) == len(inodes)


@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=50, deadline=None)
def test_a_disk_that_refuses_now_and_then(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Short writes and failing calls: neither the state nor an event is ever lost."""
    path = tmp_path_factory.mktemp("refusals") / "journal.bin"
    rng = random.Random(seed)
    kernel = Kernel(path, 0, max_bytes=1500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "os", Mortal(rng, 0, refusals=0.2))
        for _ in range(150):
            kernel.emit(rng.choice((0, 10, 200, 700)))
            if rng.random() < 0.5 and kernel.journal.flush():
                assert newest(path) == kernel.newest
    kernel.journal.close()
    assert kernel.journal.failures > 0
    assert kernel.journal.dropped == 0
    assert [event["seq"] for event in read_events(path.parent)] == list(range(1, kernel.newest + 1))
