"""The past of a run out of its journal, as facts. The only place that knows how a journal is read."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from midflight.kernel.journal_files import EVENT_KEYS, JournalTail, read_events
from midflight.kernel.rundir import RunDir

from .facts import Fact


class Declared(NamedTuple):
    """A knob was declared, or is applied by nobody any more: what the journal alone tells, not the event stream."""

    knob: str
    spec: Mapping[str, Any] | None
    """None: nobody applies it any more."""
    value: Any = None
    version: int = 0


def read_facts(run_dir: Path, after: int = 0) -> Iterator[Fact]:
    """Every event after number `after` that the journal holds, in order. Nothing when there is no journal."""
    for record in read_events(run_dir, after=after):
        yield Fact(record["seq"], record["ns"], record["source"], record["topic"], record["step"], record["body"])


def read_past(run_dir: Path) -> Iterator[Fact | Declared]:
    """Every event, and between them what became of the knobs' declarations."""
    with JournalTail(RunDir(run_dir).journal) as tail:
        for record in tail.read():
            if record["t"] == "event":
                yield Fact(*(record[key] for key in EVENT_KEYS))
            elif record["t"] == "knob" and record["kind"] == "knob.declared":
                body = record["body"]
                yield Declared(str(body["knob"]), body["spec"], body["value"], int(body["version"] or 0))
            elif record["t"] == "knob" and record["kind"] == "knob.undeclared":
                yield Declared(str(record["body"]["knob"]), None)
