"""metrics.jsonl: the run's own append-only record, one JSON object a line; everything else is fed from it.

    {"seq": 1204, "ts": 1790000000.25, "source": "learner#1", "step": 41, "values": {"reward": 0.61}}
    {"seq": 1205, "ts": 1790000000.31, "source": "kernel", "event": "knob", "step": 41,
     "values": {"knob": "kl.coef", "value": 0.21}}

`ts` is wall-clock seconds. A line counts once its newline is there. A full disk costs records, which are counted and
noted in the file when there is room again; it never raises. Lines survive the death of the process, and a crash of
the machine as far as the file system does.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Record = dict[str, object]
_CHUNK = 1 << 20  # bytes read at once


class MetricsLog:
    """The writer. Opening cuts off a torn last line. `last` is the newest record with a `seq`, None if there is none.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        size = os.fstat(self._fd).st_size
        self._size, self.last = _survey(self._fd, size)
        self.dropped = 0
        self._gap = 0
        self._torn = self._size < size

    def append(self, record: Mapping[str, object]) -> bool:
        """Write a record, or count it as dropped and return False if the disk does not take it."""
        line = encode(record)
        if self._gap:
            line = encode({"ts": record.get("ts"), "event": "dropped", "values": {"records": self._gap}}) + line
        if not self._write(line):
            self.dropped += 1
            self._gap += 1
            return False
        self._gap = 0
        if "seq" in record:
            self.last = dict(record)
        return True

    def _write(self, line: bytes) -> bool:
        """Write the whole line or none of it."""
        try:
            if self._torn:
                os.ftruncate(self._fd, self._size)
                self._torn = False
            written = os.write(self._fd, line)
        except OSError:
            return False
        if written == len(line):
            self._size += written
            return True
        self._torn = True
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._size)
            self._torn = False
        return False

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Batch:
    """Records with the byte offsets after each; `end` is the offset to go on from, `more` whether others wait there."""

    records: list[Record]
    offsets: list[int]
    end: int
    more: bool = False
    bad: int = 0
    """Whole lines that are no records, passed over."""


def read_from(path: Path, offset: int, most: int = _CHUNK) -> Batch:
    """Read the whole lines at byte `offset`, about `most` bytes of them; none if the file is not there yet.

    Raises:
        ValueError: the file is shorter than `offset`, so it is not the one that was read before.
        OSError: it cannot be read.
    """
    if not path.exists():
        return Batch([], [], offset)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < offset:
            raise ValueError(f"{path} has {size} bytes but was read up to {offset}: it was replaced")
        file.seek(offset)
        data = file.read(most)
        while b"\n" not in data and (rest := file.read(most)):  # one very long line
            data += rest
    data = data[: data.rfind(b"\n") + 1]
    records, offsets, end, bad = [], [], offset, 0
    for line in data.splitlines(keepends=True):
        end += len(line)
        record = decode(line)
        if record is None:
            bad += 1
        else:
            records.append(record)
            offsets.append(end)
    return Batch(records, offsets, end, more=end < size and bool(data), bad=bad)


def encode(record: Mapping[str, object]) -> bytes:
    """Encode a line. JSON has no NaN or infinity: in `values` they are the texts "nan", "inf" and "-inf"."""
    values = record.get("values")
    if isinstance(values, Mapping):
        record = {**record, "values": {name: _finite(value) for name, value in values.items()}}
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> Record | None:
    """Decode a line; None if it is not an object."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _finite(value: object) -> object:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _survey(fd: int, size: int) -> tuple[int, Record | None]:
    """Read backwards: the end of the last whole line, and the newest record with a `seq`."""
    length = min(size, _CHUNK)
    while True:
        data = os.pread(fd, length, size - length)
        *lines, torn = data.split(b"\n")
        for line in reversed(lines):
            if (record := decode(line)) is not None and "seq" in record:
                return size - len(torn), record
        if length == size:
            return (size - len(torn) if lines else 0), None
        length = min(size, 2 * length)
