"""Reading a journal: as a whole for recovery, or while it grows."""

import os
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from .journal_format import HEADER, Record, read_header, scan


class JournalReader:
    """Reads a journal while it grows, across rotations. Damaged stretches are skipped and counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        """Bytes skipped between intact records."""
        self._file = path.open("rb")
        self._salt: int | None = None
        self._offset = HEADER.size

    def read_from(self, offset: int) -> tuple[list[Any], int]:
        """Return the records written since byte `offset` (0: all) and the offset to go on from. Raises NotAJournal."""
        if self._salt is None:
            self._file.seek(0)
            self._salt = read_header(self._file.read(HEADER.size))
            if self._salt is None:
                return [], 0
        offset = max(offset, HEADER.size)
        self._file.seek(offset)
        values, end = [], 0
        for record in scan(self._file.read(), self._salt):
            self.damaged += record.start - end
            end = record.end
            values.append(record.value())
        return values, offset + end

    def read(self) -> list[Any]:
        """Return the records since the last call. After a rotation: the rest of the old file, then the new one."""
        values, self._offset = self.read_from(self._offset)
        try:
            moved = os.stat(self.path).st_ino != os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            moved = False
        if moved:
            rest, _ = self.read_from(self._offset)
            self._file.close()
            self._file, self._salt, self._offset = self.path.open("rb"), None, HEADER.size
            values += rest + self.read()
        return values

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def recover(path: Path) -> tuple[Any | None, list[Any]]:
    """Return the last snapshot, if any, and every record after it. Raises FileNotFoundError, NotAJournal."""
    base: Record | None = None
    rest: list[Record] = []
    with path.open("rb") as file:
        salt = read_header(file.read(HEADER.size))
        if salt is None:
            return None, []
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            for record in scan(data, salt):
                if record.snapshot:
                    base, rest = record, []
                else:
                    rest.append(record)
    return base.value() if base else None, [record.value() for record in rest]
