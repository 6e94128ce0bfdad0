"""The run's journal: one append-only file, written by the kernel, readable while it grows.

A writer never raises for the sake of the disk: what cannot be written is kept and tried again; beyond a bound the
oldest is dropped and counted, and a snapshot follows as soon as the disk takes it. Opening for writing cuts a torn
tail. At `max_bytes` a new file begins with a snapshot of the caller's state, and the old one is closed: it stays beside
it under a number, as long as the closed ones together are within `keep_bytes`; the oldest goes first.
"""

import contextlib
import os
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from .journal_format import (
    HEADER,
    PLACE,
    PLACE_EVERY,
    PLAIN,
    SNAPSHOT,
    Place,
    Record,
    pack,
    pack_header,
    read_header,
    scan,
)
from .journal_segments import closed_numbers, closed_path

MAX_PENDING = 4 << 20


class Journal:
    """The only writer of a journal. `append` buffers; `flush` hands to the system; `sync` waits for the disk.

    A flushed record survives the death of any process, a synced one that of the machine. `snapshot` returns the value
    that makes everything appended so far unnecessary for recovery, so change your state before you append.

    Raises (at construction only): OSError if the file cannot be opened, NotAJournal if it is something else.
    """

    def __init__(
        self,
        path: Path,
        snapshot: Callable[[], object],
        *,
        max_bytes: int = 64 << 20,
        keep_bytes: int = 1 << 30,
        salt: int | None = None,
    ) -> None:
        self.path = path
        self.dropped = 0
        """Records lost because the disk did not take them for too long, or because they cannot be packed."""
        self.failures = 0
        """Writes that failed or fell short, and rotations that failed."""
        self._snapshot = snapshot
        self._max_bytes, self._keep_bytes = max_bytes, keep_bytes
        self._place = Place()
        self._unplaced = 0
        """Bytes appended since the last place."""
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._hole = False
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._salt, self._end = self._recover(_new_salt() if salt is None else salt)
            self._base = HEADER.size
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def size(self) -> int:
        """Bytes of the file that hold intact records."""
        return self._end

    def append(self, value: object) -> None:
        """Buffer one record: plain values only."""
        place = pack(self._place.dump(), PLACE, self._salt) if self._unplaced >= PLACE_EVERY else b""
        self._place.take(value)
        self._append(value, PLAIN, place)

    def checkpoint(self) -> None:
        """Write a snapshot now, so that recovery starts here."""
        self._append(self._snapshot(), SNAPSHOT)

    def flush(self) -> bool:
        """Write what is buffered. False: the disk refused; all of it is kept for the next time."""
        if not self._write_pending():
            return False
        if self._end > max(self._max_bytes, 2 * self._base):
            self._rotate()
        if self._hole:
            self._hole = False
            self.checkpoint()
            self._hole = not self._write_pending()
        return not self._hole

    def sync(self) -> bool:
        """Write what is buffered and wait until the disk has it."""
        if not self.flush():
            return False
        try:
            os.fdatasync(self._fd)
        except OSError:
            self.failures += 1
            return False
        return True

    def close(self) -> None:
        """Sync and close. Without effect when repeated."""
        if self._fd >= 0:
            self.sync()
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, value: object, flag: int, place: bytes = b"") -> None:
        try:
            record = place + pack(value, flag, self._salt)
        except (TypeError, ValueError):
            self.dropped += 1
            return
        self._pending.append(record)
        self._pending_bytes += len(record)
        self._unplaced = len(record) + (0 if place else self._unplaced)
        while self._pending_bytes > MAX_PENDING and len(self._pending) > 1 and not self.flush():
            self._pending_bytes -= len(self._pending.popleft())
            self.dropped += 1
            self._hole = True

    def _recover(self, salt: int) -> tuple[int, int]:
        """Find the last place and the end of the last intact record, and cut what follows; -> (salt, end)."""
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        known = read_header(data)
        if known is None:
            self._end = 0
            os.ftruncate(self._fd, 0)
            if not self._write(pack_header(salt)):
                raise OSError(f"{self.path}: no space for the journal's header")
            return salt, HEADER.size
        end = HEADER.size
        unplaced: list[Record] = []
        for record in scan(data, known):
            end = record.end
            if record.flag == PLACE:
                self._place, unplaced = Place(*record.value()), []
            elif record.flag == PLAIN:
                unplaced.append(record)
        for record in unplaced:
            self._place.take(record.value())
        self._unplaced = end - unplaced[0].start if unplaced else 0
        if end < len(data):
            os.ftruncate(self._fd, end)
        return known, end

    def _write_pending(self) -> bool:
        if self._pending:
            if not self._write(b"".join(self._pending)):
                return False
            self._pending.clear()
            self._pending_bytes = 0
        return True

    def _write(self, data: bytes) -> bool:
        """All of it at the end of the file, or nothing."""
        try:
            written = os.pwrite(self._fd, data, self._end)
        except OSError:
            written = 0
        if written == len(data):
            self._end += written
            return True
        self.failures += 1
        self._cut()
        return False

    def _cut(self) -> None:
        """Take back a short write. If even that fails, the next write starts at the same place and covers it."""
        try:
            os.ftruncate(self._fd, self._end)
        except OSError:
            self.failures += 1

    def _rotate(self) -> None:
        """Begin a new file with a snapshot; on failure go on with the old one."""
        old_fd, old_end = self._fd, self._end
        fresh = self.path.with_name(self.path.name + ".new")
        salt = _new_salt()
        try:
            first = pack(self._place.dump(), PLACE, salt) + pack(self._snapshot(), SNAPSHOT, salt)
            self._fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            self._end = 0
            if not self._write(pack_header(salt) + first):
                raise OSError(f"{fresh}: no space")
            os.fdatasync(self._fd)
            _take_place(fresh, self.path)
        except (OSError, ValueError, TypeError):
            self.failures += 1
            if self._fd != old_fd:
                os.close(self._fd)
                _remove(fresh)
            self._fd, self._end = old_fd, old_end
            return
        self._sync_names()
        os.close(old_fd)
        self._salt, self._base, self._hole, self._unplaced = salt, self._end, False, 0
        self._drop_oldest()

    def _sync_names(self) -> None:
        """The new file is in force already: that its name may not survive the machine is counted only."""
        try:
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError:
            self.failures += 1

    def _drop_oldest(self) -> None:
        """Closed files beyond the bound go; the newest of them stays, because the next number follows from it."""
        room = self._keep_bytes
        try:
            for age, number in enumerate(reversed(closed_numbers(self.path))):
                file = closed_path(self.path, number)
                room -= os.stat(file).st_size
                if age and room < 0:
                    os.unlink(file)
        except OSError:
            self.failures += 1


def _new_salt() -> int:
    return int(struct.unpack("<I", os.urandom(4))[0])


def _take_place(fresh: Path, path: Path) -> None:
    """Put `fresh` in the place of `path`, which stays under the next number; `path` exists at every moment."""
    numbers = closed_numbers(path)
    if numbers and os.path.samefile(closed_path(path, numbers[-1]), path):  # a former attempt got only so far
        os.unlink(closed_path(path, numbers.pop()))
    os.link(path, closed_path(path, numbers[-1] + 1 if numbers else 1))
    os.replace(fresh, path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
