"""The services' structured logs, merged by time, read from where they were left; and a dead process's last output."""

import json
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .words import plain

KEPT: Final = 5000
PIECE: Final = 1 << 20
"""Bytes read of one file in one go; of a longer log the newest are shown."""
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
TAIL_BYTES: Final = 16_384
_HIDDEN: Final = frozenset({"timestamp", "level", "event", "service", "run"})


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a log."""

    when: str
    service: str
    level: str
    text: str
    raw: Mapping[str, Any]

    @property
    def rank(self) -> int:
        """How serious, 0 to 4."""
        return LEVELS.index(self.level) if self.level in LEVELS else 1


class LogBook:
    """The newest records of every `*.jsonl` of a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.records: deque[Record] = deque(maxlen=KEPT)
        self.total = 0
        """Records ever read."""
        self._offsets: dict[int, int] = {}

    def read(self) -> list[Record]:
        """What was written since the last call, by time; torn last lines wait."""
        fresh: list[Record] = []
        for path in sorted(self.folder.glob("*.jsonl")) if self.folder and self.folder.is_dir() else ():
            fresh += [_record(path.name.split(".")[0], line) for line in self._lines(path)]
        fresh.sort(key=lambda record: record.when)
        self.records.extend(fresh)
        self.total += len(fresh)
        return fresh

    def last_words(self, service: str, lines: int = 20) -> list[str]:
        """The end of the newest output of a service that said anything."""
        if not self.folder:
            return []
        said = [path for path in self.folder.glob(f"{service}.*.out") if path.name.split(".")[-2].isdigit()]
        for path in sorted(said, key=lambda path: -int(path.name.split(".")[-2])):
            with path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - TAIL_BYTES))
                text = file.read().decode(errors="replace")
            if text.strip():
                return [plain(line) for line in text.splitlines()[-lines:]]
        return []

    def _lines(self, path: Path) -> list[str]:
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())  # a rotated file keeps its number under its new name
                start = self._offsets.get(found.st_ino, max(0, found.st_size - PIECE))
                file.seek(start)
                data = file.read(PIECE)
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        torn = whole.find(b"\n") + 1 if start and found.st_ino not in self._offsets else 0
        self._offsets[found.st_ino] = start + len(whole)
        whole = whole[torn:]
        return whole.decode(errors="replace").splitlines()


def _record(service: str, line: str) -> Record:
    try:
        raw = json.loads(line)
        if not isinstance(raw, dict):
            raise ValueError("not an object")
    except ValueError:
        return Record("", service, "info", plain(line), {"line": line})
    rest = " ".join(f"{key}={value}" for key, value in raw.items() if key not in _HIDDEN and key != "exception")
    text = plain(f"{raw.get('event', '')} {rest}".strip())
    level = str(raw.get("level", "info"))
    return Record(str(raw.get("timestamp", "")), str(raw.get("service", service)), level, text, raw)
