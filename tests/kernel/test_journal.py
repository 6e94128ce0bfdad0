"""The journal: torn tails, bit flips, a full disk, rotation. For reading files and kills see the tests beside."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.kernel.journal import MAX_PENDING, Journal
from midflight.kernel.journal_files import JournalTail
from midflight.kernel.journal_format import HEADER, MARK, NotAJournal, pack
from midflight.kernel.journal_reader import recover

SALT = 0x1234


def nothing() -> object:
    """A snapshot for tests that need none."""
    return {}


def records(count: int) -> list[dict[str, Any]]:
    """Distinct records of different lengths, with marks inside."""
    return [{"seq": i, "text": "x" * (i * 7 % 40), "bytes": MARK * (i % 3)} for i in range(count)]


def written(path: Path, count: int) -> list[int]:
    """Write `count` records; -> the file size after the header and after each record."""
    with Journal(path, nothing, salt=SALT) as journal:
        sizes = [journal.size]
        for record in records(count):
            journal.append(record)
            journal.flush()
            sizes.append(journal.size)
    return sizes


def told(path: Path) -> list[Any]:
    """Everything a reader finds."""
    with JournalTail(path) as tail:
        return list(tail.read())


def test_round_trip_and_reopen(tmp_path: Path) -> None:
    """Records come back in order, also those of a second writer; the file is private."""
    path = tmp_path / "journal.bin"
    written(path, 5)
    with Journal(path, nothing) as journal:
        journal.append({"again": True})
    assert recover(path) == (None, [*records(5), {"again": True}])
    assert path.stat().st_mode & 0o777 == 0o600


def test_recovery_starts_at_the_last_snapshot(tmp_path: Path) -> None:
    """What lies before the last snapshot is not needed."""
    path = tmp_path / "journal.bin"
    with Journal(path, lambda: {"state": 7}) as journal:
        for value in ("a", "b"):
            journal.append(value)
            journal.checkpoint()
        journal.append("c")
    assert recover(path) == ({"state": 7}, ["c"])


def test_every_torn_tail(tmp_path: Path) -> None:
    """Cut at any byte, the file opens with exactly the whole records before the cut, and goes on from there."""
    path = tmp_path / "journal.bin"
    sizes = written(path, 4)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        kept = max(sum(size <= cut for size in sizes) - 1, 0)
        assert told(path) == records(4)[:kept]
        with Journal(path, nothing) as journal:
            assert journal.size == sizes[kept]
            journal.append("more")
        assert recover(path) == (None, [*records(4)[:kept], "more"])


def test_every_bit_flip_costs_one_record(tmp_path: Path) -> None:
    """A flipped bit loses the record it lies in and no other; in the header it is refused and nothing is cut."""
    path = tmp_path / "journal.bin"
    sizes = written(path, 4)
    whole = path.read_bytes()
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        if bit // 8 < HEADER.size:
            with pytest.raises(NotAJournal):
                Journal(path, nothing)
            assert path.read_bytes() == damaged
            continue
        lost = sum(size <= bit // 8 for size in sizes) - 1
        with JournalTail(path) as reader:
            assert list(reader.read()) == [r for i, r in enumerate(records(4)) if i != lost]
            assert reader.damaged == (sizes[lost + 1] - sizes[lost] if lost < 3 else 0)
        if bit % 8 == 3:
            Journal(path, nothing).close()
        assert recover(path)[1] == [r for i, r in enumerate(records(4)) if i != lost]


@given(data=st.binary(max_size=300), seed=st.integers(0, 999))
@settings(max_examples=200, deadline=None)
def test_garbage_never_raises_and_never_invents(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, seed: int
) -> None:
    """Random bytes, also around true records, yield the true records only."""
    path = tmp_path_factory.mktemp("j") / "journal.bin"
    sizes = written(path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[: sizes[1]] + data + whole[sizes[1] :] + data)
    assert told(path) == records(2)
    path.write_bytes(data)
    if data and not whole.startswith(data[:8]):
        with pytest.raises(NotAJournal):
            Journal(path, nothing)


def test_a_record_inside_a_payload_is_no_record(tmp_path: Path) -> None:
    """A forged record in a payload is not found when the outer one is torn, because the salt is unknown."""
    path = tmp_path / "journal.bin"
    with Journal(path, nothing) as journal:
        journal.append(pack("forged", 0, SALT) + b"the rest of the payload")
    path.write_bytes(path.read_bytes()[:-1])
    assert told(path) == []


def test_unpackable_and_oversized_values_are_counted(tmp_path: Path) -> None:
    """A value that cannot be written is dropped and counted; the next ones are kept."""
    path = tmp_path / "journal.bin"
    with Journal(path, nothing) as journal:
        journal.append({"x": object()})
        journal.append(2**70)
        journal.append(b"x" * (17 << 20))
        journal.append("fine")
        assert journal.dropped == 3
    assert recover(path) == (None, ["fine"])


FULL_DISK = """
import resource, sys
from pathlib import Path
from midflight.kernel.journal import Journal
path, limit = Path(sys.argv[1]), int(sys.argv[2])
state = {"count": 0}
journal = Journal(path, lambda: dict(state))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
def put(count, size):
    for _ in range(count):
        state["count"] += 1
        journal.append({"n": state["count"], "pad": b"x" * size})
        journal.flush()
put(10, 1000)
assert not journal.flush() and not journal.sync()
assert journal.failures and not journal.dropped, (journal.failures, journal.dropped)
assert journal.size <= limit and path.stat().st_size == journal.size
put(int(sys.argv[3]), 500_000)
dropped = journal.dropped
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert journal.flush() and journal.dropped == dropped
put(1, 0)
journal.close()
print(dropped)
"""


@pytest.mark.parametrize("large", [0, 12])
def test_full_disk(tmp_path: Path, large: int) -> None:
    """A short write is taken back and tried again; nothing raises. What had to be dropped is healed by a snapshot."""
    path = tmp_path / "journal.bin"
    command = [sys.executable, "-c", FULL_DISK, str(path), "4000", str(large)]
    paths = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert done.returncode == 0, done.stderr
    base, rest = recover(path)
    if large:
        assert int(done.stdout) > 0
        assert base == {"count": 10 + large}
        assert [r["n"] for r in rest] == [11 + large]
    else:
        assert (base, [r["n"] for r in rest]) == (None, list(range(1, 12)))


def test_pending_is_bounded(tmp_path: Path) -> None:
    """A disk that takes nothing costs bounded memory and keeps the newest records."""
    journal = Journal(tmp_path / "journal.bin", nothing)
    journal._write = lambda data: False  # type: ignore[method-assign]
    for i in range(20):
        journal.append({"n": i, "pad": b"x" * 1_000_000})
        assert journal._pending_bytes <= MAX_PENDING
    assert journal.dropped == 16


def test_rotation_bounds_the_disk_and_keeps_recovery(tmp_path: Path) -> None:
    """A long run stays within the bounds, the oldest going first; the state comes back exactly, at any moment."""
    path, total = tmp_path / "journal.bin", {"sum": 0}
    with Journal(path, lambda: dict(total), max_bytes=20_000, keep_bytes=50_000) as journal:
        for i in range(3000):
            total["sum"] += i
            journal.append({"add": i})
            if i % 10 == 0:
                journal.flush()
            if i % 500 == 0:
                base, rest = recover(path)
                assert (base or {"sum": 0})["sum"] + sum(r["add"] for r in rest) == total["sum"]
                assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 50_000 + 21_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal.0002.bin", "journal.0003.bin", "journal.bin"]
    base, rest = recover(path)
    assert base is not None
    assert base["sum"] + sum(r["add"] for r in rest) == total["sum"]


def test_a_snapshot_larger_than_the_bound_does_not_rotate_for_ever(tmp_path: Path) -> None:
    """The bound gives way to the state: at least as many records as the snapshot is large go between rotations."""
    calls = []

    def snapshot() -> object:
        calls.append(1)
        return {"big": b"x" * 5000}

    with Journal(tmp_path / "j", snapshot, max_bytes=1000) as journal:
        for i in range(1000):
            journal.append({"i": i})
            journal.flush()
    assert len(calls) < 10


def test_failed_rotation_goes_on_in_the_old_file(tmp_path: Path) -> None:
    """No new file can be made: records still go to the old one, and the failure is counted."""
    path = tmp_path / "journal.bin"
    (tmp_path / "journal.bin.new").mkdir()
    with Journal(path, nothing, max_bytes=500) as journal:
        for record in records(40):
            journal.append(record)
            journal.flush()
        assert journal.failures > 0
        assert journal.dropped == 0
    assert recover(path) == (None, records(40))
