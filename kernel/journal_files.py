"""A run's past as its journal tells it: all files in order, from the beginning or from an event or step, and onwards.

Reading needs no kernel, harms none, and goes on over what is damaged.
"""

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from .journal_format import PLACE, PLAIN, SNAPSHOT, Place, Record
from .journal_segments import Segment, open_segments
from .knobstate import KnobEvent, KnobState
from .rundir.directory import RunDir

EVENT_KEYS: Final = ("seq", "ns", "source", "topic", "step", "body")


class JournalTail:
    """Hands out a journal's records from some point on, across its files, and goes on when more has been written.

    It begins at or before what comes after event `after`, and at or before the first metrics of step `from_step`.
    """

    def __init__(self, path: Path, after: int = 0, from_step: int | None = None) -> None:
        self.path = path
        self._damaged = 0
        self._segments = open_segments(path)
        self._seek(after, -1 if from_step is None else from_step)

    @property
    def damaged(self) -> int:
        """Bytes that hold no intact record, as far as that is certain."""
        return self._damaged + sum(segment.damaged for segment in self._segments)

    def read(self) -> Iterator[Any]:
        """The records since the last call, up to now: each once, snapshots left out."""
        if not self._segments:
            self._segments = open_segments(self.path)
        while self._segments:
            segment = self._segments[0]
            yield from self._values(segment)
            if len(self._segments) == 1 and not self._is_closed(segment):
                return
            yield from self._values(segment)  # written between our last look and its closing
            self._leave(segment)

    def close(self) -> None:
        """Close the files."""
        for segment in self._segments:
            segment.close()
        self._segments.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _seek(self, after: int, from_step: int) -> None:
        """Leave out the files, and most of a file, that lie before what is wanted."""
        segments = self._segments
        if not segments or (after <= 0 and from_step <= 0):
            return
        begin = 0
        for at in range(len(segments) - 1, 0, -1):
            place = segments[at].first_place()  # without a step it may begin a new numbering: it tells nothing of steps
            if (after > 0 and place.seq <= after) or 0 <= place.step < from_step:
                begin = at
                break
        for segment in segments[:begin]:
            segment.close()
        del segments[:begin]
        segments[0].seek(lambda place: (after > 0 and place.seq <= after) or place.step < from_step)

    def _values(self, segment: Segment) -> Iterator[Any]:
        return (record.value() for record in segment.records() if record.flag == PLAIN)

    def _is_closed(self, segment: Segment) -> bool:
        """Whether another file is written by now."""
        try:
            return os.stat(self.path).st_ino != segment.inode
        except FileNotFoundError:
            return False

    def _leave(self, segment: Segment) -> None:
        """Go on to the next file."""
        segment.rest_is_damage()
        self._damaged += segment.damaged
        del self._segments[0]
        if not self._segments:
            for other in open_segments(self.path):
                if other.number >= segment.number and other.inode != segment.inode:
                    self._segments.append(other)
                else:
                    other.close()
        segment.close()


def read_events(
    run_dir: Path, *, after: int = 0, topics: Collection[str] | None = None, from_step: int | None = None
) -> Iterator[dict[str, Any]]:
    """The run's events up to now, oldest first, each once: seq, ns, source, topic, step, body.

    Args:
        run_dir: of a run that lives or is over.
        after: only events with a higher number.
        topics: only these; None means all.
        from_step: begin at the metrics of this training step, or of the next one there is.
    """
    with JournalTail(RunDir(run_dir).journal, after, from_step) as tail:
        begun = from_step is None or from_step <= 0
        for record in tail.read():
            if record["t"] != "event":
                continue
            step = record["step"]
            begun = begun or (record["topic"] == "metrics" and step is not None and step >= from_step)
            if begun and record["seq"] > after and (topics is None or record["topic"] in topics):
                yield {key: record[key] for key in EVENT_KEYS}


def read_knobs(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Every change of the knob table, oldest first: kind (such as `knob.set`) and body."""
    with JournalTail(RunDir(run_dir).journal) as tail:
        for record in tail.read():
            if record["t"] == "knob":
                yield {"kind": record["kind"], "body": record["body"]}


def read_knob_table(run_dir: Path) -> KnobState:
    """The knob table as it stands, or as it stood at the end: the newest file's snapshot and what follows it."""
    state = KnobState()
    for record in _newest(RunDir(run_dir).journal, lambda segment: None):
        if record.flag == SNAPSHOT:
            state.restore(record.value()["knobs"])
        elif record.flag == PLAIN and (value := record.value())["t"] == "knob":
            state.replay(KnobEvent(value["kind"], value["body"]))
    return state


def newest_place(run_dir: Path) -> Place:
    """Where the run is: number of its newest event, and the highest training step that was measured."""
    place = Place()
    for record in _newest(RunDir(run_dir).journal, lambda segment: segment.seek(lambda place: True)):
        if record.flag == PLACE:
            place = Place(*record.value())
        elif record.flag == PLAIN:
            place.take(record.value())
    return place


def _newest(path: Path, begin: Callable[[Segment], None]) -> Iterator[Record]:
    """Records of the live file, from wherever `begin` goes to."""
    segments = open_segments(path)
    try:
        if segments:
            begin(segments[-1])
            yield from segments[-1].records()
    finally:
        for segment in segments:
            segment.close()
