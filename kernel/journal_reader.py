"""Reading a journal's live file as a whole, for recovery. For reading a run's past see `journal_files`."""

from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from .journal_format import HEADER, PLAIN, SNAPSHOT, Record, read_header, scan


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
                if record.flag == SNAPSHOT:
                    base, rest = record, []
                elif record.flag == PLAIN:
                    rest.append(record)
    return base.value() if base else None, [record.value() for record in rest]
