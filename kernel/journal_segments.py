"""The files of a journal: `journal.bin` is written, `journal.0001.bin` and so on are closed, the oldest first.

A reader may look at any moment. While a file is being closed it has two names for an instant; the inode tells.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .journal_format import HEADER, PLACE, PLACE_EVERY, NotAJournal, Place, Record, read_header, scan

CHUNK = 128 << 10


def closed_path(path: Path, number: int) -> Path:
    """Name of the closed segment `number` of the journal at `path`."""
    return path.with_name(f"{path.stem}.{number:04}{path.suffix}")


def closed_numbers(path: Path) -> list[int]:
    """Numbers of the closed segments, oldest first; a name that is being closed and still live is among them."""
    begin, end = f"{path.stem}.", path.suffix
    names = (name[len(begin) : len(name) - len(end)] for name in os.listdir(path.parent) if _between(name, begin, end))
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _between(name: str, begin: str, end: str) -> bool:
    return name.startswith(begin) and name.endswith(end) and len(name) > len(begin) + len(end)


@dataclass(slots=True)
class Segment:
    """One file of a journal, open for reading; `offset` is the end of the last record taken."""

    number: int
    fd: int
    inode: int
    offset: int = HEADER.size
    damaged: int = 0
    """Bytes skipped between intact records; all of them where the header is damaged."""
    _salt: int | None = field(default=None, repr=False)

    @classmethod
    def open(cls, path: Path, number: int) -> "Segment":
        """Raises FileNotFoundError."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return cls(number, fd, os.fstat(fd).st_ino)

    def records(self) -> Iterator[Record]:
        """The intact records after `offset`, up to where the file ends now."""
        if self._readable():
            for record in self._from(self.offset):
                self.damaged += record.start - self.offset
                self.offset = record.end
                yield record

    def first_place(self) -> Place:
        """What came before this file."""
        if self._readable():
            for record in self._from(HEADER.size):
                return Place(*record.value()) if record.flag == PLACE else Place()
        return Place()

    def seek(self, before: Callable[[Place], bool]) -> None:
        """Go on from the last place that is `before` what is sought, give or take two; reads a few of them only."""
        if not self._readable():
            return
        low, high = HEADER.size, os.fstat(self.fd).st_size
        while high - low > 2 * PLACE_EVERY:
            middle = (low + high) // 2
            found = next((record for record in self._from(middle) if record.flag == PLACE), None)
            if found is None or not before(Place(*found.value())):
                high = middle
            else:
                low = found.start
        self.offset = low

    def rest_is_damage(self) -> None:
        """The file is closed and read to its end: what follows the last intact record never becomes one."""
        size = os.fstat(self.fd).st_size
        self.damaged += max(0, size - self.offset)
        self.offset = max(size, self.offset)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def _readable(self) -> bool:
        """Whether the header is there; it is read once."""
        if self._salt is None:
            try:
                self._salt = read_header(os.pread(self.fd, HEADER.size, 0))
            except NotAJournal:
                self.offset = 0
        return self._salt is not None

    def _from(self, offset: int) -> Iterator[Record]:
        """Intact records at or after a byte. Read, not mapped: the writer may cut the file under our eyes."""
        assert self._salt is not None
        size = CHUNK
        while True:
            data, end = os.pread(self.fd, size, offset), offset
            for record in scan(data, self._salt, offset):
                end = record.end
                yield record
            if len(data) < size:
                return
            size = CHUNK if end > offset else 2 * size
            offset = end


def open_segments(path: Path) -> list[Segment]:
    """Every file of the journal, oldest first and the live one last; consistent although the run goes on."""
    while True:
        numbers = closed_numbers(path)
        out: list[Segment] = []
        try:
            for number in numbers:
                out.append(Segment.open(closed_path(path, number), number))
            live = _live(path, out)
        except FileNotFoundError:  # dropped as the oldest between the listing and now
            live = None
        if live is not None and closed_numbers(path) == numbers:
            return out + live
        for segment in (*out, *(live or ())):
            segment.close()


def _live(path: Path, closed: list[Segment]) -> list[Segment]:
    """The live file, if there is one; a closed one that it still is at the same time is taken out."""
    number = closed[-1].number if closed else 0
    try:
        live = Segment.open(path, number + 1)
    except FileNotFoundError:
        return []
    if closed and closed[-1].inode == live.inode:
        live.number = number
        closed.pop().close()
    return [live]
