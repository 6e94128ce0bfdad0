"""Fault 20: the wall clock may jump; only stamps for people read it."""

import ast
from pathlib import Path

import midflight

ROOT = Path(midflight.__path__[0])
STAMPS = {
    "kernel/main.py": "the name of a journal moved aside",
    "kernel/cli/ps.py": "the age of a run, from started_ns",
    "kernel/launch.py": "started_ns of run.json",
    "kernel/stream.py": "ns of an event",
    "kernel/warden.py": "time of a log line",
    "messages/wire.py": "ts of an envelope",
    "tui/app.py": "when an action was answered, in the decisions feed",
    "tui/finished.py": "how long ago a run that is over was heard of",
    "tui/live.py": "the stamp of a sample of memory",
    "services/data/identity.py": "when a file was changed, told to people",
    "services/ledger/store.py": "at_ns of a life line",
    "services/reward/sandbox/places.py": "change times of files, which have no other clock",
}
WALL = {"time", "time_ns", "strftime", "localtime", "gmtime", "ctime", "now", "utcnow", "today"}


def test_wall_clock_is_read_for_stamps_only() -> None:
    """No module but those that stamp something for people calls time.time() or its kin; deadlines are monotonic."""
    found: dict[str, list[int]] = {}
    for folder in ("kernel", "messages", "services", "tui"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WALL:
                    owner = node.func.value
                    if isinstance(owner, ast.Name) and owner.id in ("time", "datetime", "date"):
                        found.setdefault(str(path.relative_to(ROOT)), []).append(node.lineno)
    assert {name: lines for name, lines in found.items() if name not in STAMPS} == {}
