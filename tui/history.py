"""The past of a run out of its journal, as facts. The only place that knows how a journal is read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from midflight.kernel.journal_files import read_events, read_knobs

from .facts import Fact


def read_facts(run_dir: Path, after: int = 0) -> Iterator[Fact]:
    """Every event after number `after` that the journal holds, in order. Nothing when there is no journal."""
    for record in read_events(run_dir, after=after):
        yield Fact(record["seq"], record["ns"], record["source"], record["topic"], record["step"], record["body"])


def read_declared(run_dir: Path) -> dict[str, dict[str, Any]]:
    """knob -> its declaration, as the journal has it; empty without one."""
    found = {}
    for change in read_knobs(run_dir):
        if change["kind"] == "knob.declared":
            body = change["body"]
            found[str(body["knob"])] = {**body["spec"], "value": body["value"]}
    return found
