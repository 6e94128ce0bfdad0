"""Reading a run's past: all files in order, from an event or a step on, over damage, and while it is written."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from midflight.kernel import journal_segments
from midflight.kernel.journal import Journal
from midflight.kernel.journal_files import JournalTail, read_events, read_knobs
from midflight.kernel.journal_format import HEADER, PLACE
from midflight.kernel.journal_segments import closed_numbers, closed_path, open_segments

Event = dict[str, Any]


def event(seq: int, *, step: int | None = None, pad: int = 40, stream: str = "one") -> Event:
    """What the kernel journals of an event; with a step it is the metrics of that step."""
    topic = "metrics" if step is not None else "note"
    head = {"t": "event", "stream": stream, "seq": seq, "ns": seq, "source": "learner#1", "topic": topic}
    return {**head, "step": step, "body": {"pad": "x" * pad}, "of": "", "post": seq}


class Writer:
    """A journal of events: every tenth is the metrics of a step; steps are counted from `steps`."""

    def __init__(
        self, folder: Path, max_bytes: int, keep_bytes: int = 1 << 30, stream: str = "one", steps: int = 0
    ) -> None:
        self.seq, self.stream, self.steps = 0, stream, steps
        self.journal = Journal(folder / "journal.bin", self._snapshot, max_bytes=max_bytes, keep_bytes=keep_bytes)

    def _snapshot(self) -> object:
        return {"newest": self.seq}

    def put(self, count: int, pad: int = 40) -> None:
        """More events, each flushed."""
        for _ in range(count):
            self.seq += 1
            step = self.steps + self.seq // 10 if self.seq % 10 == 0 else None
            self.journal.append(event(self.seq, step=step, pad=pad, stream=self.stream))
            self.journal.flush()


def numbers(folder: Path, **wanted: Any) -> list[int]:
    """Numbers of the events that are read."""
    return [one["seq"] for one in read_events(folder, **wanted)]


def test_events_of_all_files_in_order(tmp_path: Path) -> None:
    """The whole past, with what callers need of each event and nothing else."""
    writer = Writer(tmp_path, 3000)
    writer.put(200)
    writer.journal.close()
    assert len(closed_numbers(tmp_path / "journal.bin")) > 5
    told = list(read_events(tmp_path))
    assert [one["seq"] for one in told] == list(range(1, 201))
    assert told[9] == {
        "seq": 10, "ns": 10, "source": "learner#1", "topic": "metrics", "step": 1, "body": {"pad": "x" * 40},
    }  # fmt: skip


def test_no_journal(tmp_path: Path) -> None:
    """A run that has not begun has no past; a tail waits for one."""
    assert numbers(tmp_path) == []
    with JournalTail(tmp_path / "journal.bin") as tail:
        assert list(tail.read()) == []
        writer = Writer(tmp_path, 3000)
        assert list(tail.read()) == []
        writer.put(3)
        assert [record["seq"] for record in tail.read()] == [1, 2, 3]


@pytest.mark.parametrize("max_bytes", [3000, 1 << 20, 64 << 20])
def test_from_an_event_or_a_step(tmp_path: Path, max_bytes: int) -> None:
    """Wherever the reading begins, it is what a filter over everything gives."""
    writer = Writer(tmp_path, max_bytes)
    writer.put(600, pad=40 if max_bytes == 3000 else 5000)
    writer.journal.close()
    for after in (0, 1, 2, 99, 100, 101, 305, 599, 600, 1000):
        assert numbers(tmp_path, after=after) == list(range(after + 1, 601))
    for step in (0, 1, 2, 17, 59, 60, 61):
        assert numbers(tmp_path, from_step=step) == list(range(max(step * 10, 1), 601))
    assert numbers(tmp_path, after=250, from_step=20, topics={"metrics"}) == list(range(260, 601, 10))
    assert numbers(tmp_path, after=150, from_step=20, topics={"metrics"}) == list(range(200, 601, 10))


def test_steps_that_are_trained_again(tmp_path: Path) -> None:
    """After a learner's restart from a checkpoint, steps come twice: reading begins at the first time."""
    with Journal(tmp_path / "journal.bin", dict, max_bytes=300_000) as journal:
        steps = [*range(1, 300), *range(200, 400)]
        for seq, step in enumerate(steps, 1):
            journal.append(event(seq, step=step, pad=3000))
            journal.flush()
    assert len(closed_numbers(tmp_path / "journal.bin")) > 2
    for step in (1, 150, 250, 299, 300, 390):
        assert numbers(tmp_path, from_step=step)[0] == steps.index(step) + 1


def test_little_is_read_to_find_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the files nor the most of a file before what is sought."""
    writer = Writer(tmp_path, 6 << 20)
    writer.put(8000, pad=2000)
    writer.journal.close()
    read = [0]

    def counted(fd: int, size: int, offset: int) -> bytes:
        data = os.pread(fd, size, offset)
        read[0] += len(data)
        return data

    counting = type("Counting", (), {"__getattr__": lambda self, name: getattr(os, name)})()
    counting.pread = counted
    monkeypatch.setattr(journal_segments, "os", counting)
    everything = sum(path.stat().st_size for path in tmp_path.iterdir())
    for wanted in ({"after": 7990}, {"from_step": 799}, {"after": 5000, "topics": ()}):
        read[0] = 0
        list(read_events(tmp_path, **wanted))
        assert 0 < read[0] < everything * (0.5 if wanted.get("after") == 5000 else 0.15)


def test_places_survive_a_restart_of_the_writer(tmp_path: Path) -> None:
    """A second writer goes on with the numbers and steps of the first, also in the files it begins."""
    for count in (120, 70, 3, 50):
        writer = Writer(tmp_path, 100_000)
        writer.seq = len(numbers(tmp_path))
        writer.put(count, pad=3000)
        writer.journal.close()
    places = []
    for segment in open_segments(tmp_path / "journal.bin"):
        found = [segment.first_place(), *(r.value() for r in segment.records() if r.flag == PLACE)]
        places.append(found[0].dump())
        for seq, step in found[1:]:
            assert step == (seq // 10 or -1)
        segment.close()
    assert [seq for seq, _ in places] == sorted({seq for seq, _ in places})
    assert all(step == (seq // 10 or -1) for seq, step in places)
    assert places[-1][0] > 200


def test_knobs(tmp_path: Path) -> None:
    """Knob records of all files."""
    with Journal(tmp_path / "journal.bin", dict, max_bytes=400) as journal:
        for version in range(20):
            journal.append({"t": "knob", "kind": "knob.set", "body": {"version": version}})
            journal.append({"t": "supervisor", "state": {}})
            journal.flush()
    assert list(read_knobs(tmp_path)) == [{"kind": "knob.set", "body": {"version": v}} for v in range(20)]


def test_damage_is_passed_over_and_counted(tmp_path: Path) -> None:
    """A flipped bit costs one event, a damaged header one file, whatever the place; the rest is told."""
    writer = Writer(tmp_path, 3000)
    writer.put(200)
    writer.journal.close()
    path = tmp_path / "journal.bin"
    first, second = (closed_path(path, number) for number in (1, 2))
    lost = {one["seq"] for one in read_events(tmp_path)} - _numbers_without(tmp_path, second)
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 4
    first.write_bytes(data)
    header = bytearray(second.read_bytes())
    header[HEADER.size - 1] ^= 1
    second.write_bytes(header)
    with first.open("ab") as file:
        file.write(b"garbage")
    with JournalTail(path) as tail:
        told = [record["seq"] for record in tail.read()]
        assert tail.damaged == len(header) + len("garbage") + _record_size(data)
    assert told == sorted(set(told))
    missing = set(range(1, 201)) - set(told)
    assert len(missing - lost) == 1
    assert lost <= missing


def _numbers_without(folder: Path, path: Path) -> set[int]:
    aside = path.with_suffix(".aside")
    path.rename(aside)
    found = set(numbers(folder))
    aside.rename(path)
    return found


def _record_size(data: bytearray) -> int:
    """Size of the record in the middle of a file."""
    middle = len(data) // 2
    return data.index(b"\xf5JRN", middle) - data.rindex(b"\xf5JRN", 0, middle)


def test_a_lost_journal_begins_another_numbering(tmp_path: Path) -> None:
    """The live file was moved aside: the closed ones are still told, and numbers mean the new numbering."""
    writer = Writer(tmp_path, 3000)
    writer.put(200)
    writer.journal.close()
    older = closed_numbers(tmp_path / "journal.bin")
    with JournalTail(tmp_path / "journal.bin") as tail:
        assert len(list(tail.read())) == 200
        live = min(_numbers_without(tmp_path, tmp_path / "journal.bin") ^ set(range(1, 201)))
        (tmp_path / "journal.bin").rename(tmp_path / "journal.bin.damaged-1")
        again = Writer(tmp_path, 3000, stream="two", steps=20)
        again.put(100)
        assert [record["seq"] for record in tail.read()] == list(range(1, 101))
    assert numbers(tmp_path) == [*range(1, live), *range(1, 101)]
    assert numbers(tmp_path, after=30) == list(range(31, 101))
    assert numbers(tmp_path, from_step=3) == [*range(30, live), *range(1, 101)]
    assert set(older) < set(closed_numbers(tmp_path / "journal.bin"))
    again.journal.close()


def test_a_file_with_two_names(tmp_path: Path) -> None:
    """The writer died while it closed the live file, which bears both names since: it is read once."""
    path = tmp_path / "journal.bin"
    with Journal(path, dict) as journal:
        journal.append({"t": "knob", "kind": "knob.set", "body": {"version": 1}})
        journal.flush()
        os.link(path, closed_path(path, 1))
        assert len(list(read_knobs(tmp_path))) == 1
        with JournalTail(path) as tail:
            assert len(list(tail.read())) == 1
            journal.append({"more": True})
            journal._max_bytes = 0
            journal.flush()
            assert list(tail.read()) == [{"more": True}]
    assert closed_numbers(path) == [1]


def test_large_records_and_large_damage(tmp_path: Path) -> None:
    """Both are larger than what is read at once."""
    path = tmp_path / "journal.bin"
    writer = Writer(tmp_path, 64 << 20)
    for pad in (10, 3_000_000, 10, 1_000_000, 500_000):
        writer.put(1, pad=pad)
    writer.journal.close()
    assert numbers(tmp_path) == [1, 2, 3, 4, 5]
    data = bytearray(path.read_bytes())
    at = data.index(b"\xf5JRN", 2_000_000)  # the third event, or the place before it
    data[at : at + 900_000] = bytes(900_000)
    path.write_bytes(data)
    assert numbers(tmp_path) == [1, 2, 5]
    assert numbers(tmp_path, after=4) == [5]


@pytest.mark.parametrize("max_bytes", [1 << 20, 3000])
def test_reading_while_writing(tmp_path: Path, max_bytes: int) -> None:
    """A reader that looks at any moment, between torn writes and across files, sees each record once, in order."""
    rng = random.Random(5)
    seen: list[int] = []
    writer = Writer(tmp_path, max_bytes)
    journal = writer.journal
    with JournalTail(tmp_path / "journal.bin") as tail:
        plain = journal._write

        def in_pieces(data: bytes) -> bool:
            cut = rng.randrange(len(data))
            os.pwrite(journal._fd, data[:cut], journal._end)
            if rng.random() < 0.2:
                seen.extend(record["seq"] for record in tail.read())
            return plain(data)

        journal._write = in_pieces  # type: ignore[method-assign]
        writer.put(1000)
        seen.extend(record["seq"] for record in tail.read())
        assert seen == list(range(1, 1001))
        assert tail.damaged == 0
    assert (len(closed_numbers(tmp_path / "journal.bin")) > 20) == (max_bytes == 3000)


def test_rotation_between_two_looks_of_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written to the old file after the last look and before it was closed is not missed."""
    writer = Writer(tmp_path, 3000)
    writer.put(3)
    with JournalTail(tmp_path / "journal.bin") as tail:
        values = tail._values
        looks: list[int] = []

        def and_then_rotate(segment: Any) -> Any:
            yield from values(segment)
            if not looks:
                looks.append(1)
                writer.put(100)

        monkeypatch.setattr(tail, "_values", and_then_rotate)
        assert [record["seq"] for record in tail.read()] == list(range(1, 104))


def test_a_slow_reader_loses_what_was_dropped_only(tmp_path: Path) -> None:
    """Files that go while a reader is elsewhere are missed; what it has open and what is left is not."""
    writer = Writer(tmp_path, 3000, keep_bytes=9000)
    writer.put(3)
    with JournalTail(tmp_path / "journal.bin") as tail:
        assert [record["seq"] for record in tail.read()] == [1, 2, 3]
        writer.put(500)
        there = numbers(tmp_path)
        told = [record["seq"] for record in tail.read()]
    assert there == list(range(there[0], 504))
    assert there[0] > 100
    assert told[-len(there) :] == there
    rest = told[: -len(there)]
    assert rest
    assert rest == list(range(4, 4 + len(rest)))


def test_a_file_that_is_dropped_while_the_list_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is made again: it has no hole."""
    writer = Writer(tmp_path, 3000)
    writer.put(100)
    path = tmp_path / "journal.bin"
    real = journal_segments.closed_numbers
    calls = []

    def and_then_drop(of: Path) -> list[int]:
        found = real(of)
        calls.append(1)
        if len(calls) in (1, 2):
            closed_path(path, found[0]).unlink()
            writer.put(60)
        return found

    monkeypatch.setattr(journal_segments, "closed_numbers", and_then_drop)
    told = numbers(tmp_path)
    assert len(calls) > 3
    assert told == list(range(told[0], 221))
    assert told[0] > 1
