"""The lock of a run directory: an flock that dies with its process, and a text that names the holder.

The flock decides; the text (`midflight <pid> <start time>`) only lets others tell who holds it, and whether
that process lives, without trying the lock: a trial would make an honest `acquire` fail at the same moment.
"""

import fcntl
import os
from pathlib import Path

from .errors import RunDirBusy, RunDirError

_MAGIC = "midflight"


class Lock:
    """The lock file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def acquire(self) -> None:
        """Take the lock until `release` or the end of this process. Raises RunDirBusy or RunDirError."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise RunDirError(f"cannot lock {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise RunDirBusy(self.path.parent, self.holder()[0]) from None
        self._fd = fd
        self._sign(os.getpid())

    def release(self) -> None:
        """Give the lock back; the file stays, as the mark of a run directory."""
        if self._fd is not None:
            self._sign(0)
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # a child between fork and exec still has the descriptor
            os.close(self._fd)
            self._fd = None

    @property
    def descriptor(self) -> int:
        """The locked descriptor, for a child that is to inherit the lock."""
        assert self._fd is not None
        return self._fd

    def hand_over(self, pid: int) -> None:
        """Leave the lock to a child that inherited `descriptor`: it lasts as long as that process."""
        if self._fd is not None:
            self._sign(pid)
            os.close(self._fd)
            self._fd = None

    def is_live(self) -> bool:
        """Whether the process that last took the lock lives and has not released it."""
        pid, started = self.holder()
        return pid > 0 and start_time(pid) == started

    def is_ours(self) -> bool:
        """Whether midflight wrote this file."""
        try:
            return self.path.read_text().startswith(_MAGIC + " ")
        except (OSError, UnicodeDecodeError):
            return False

    def holder(self) -> tuple[int, int]:
        """Pid and start time of the last holder; zeros when there is none or it has not signed yet."""
        try:
            magic, pid, started = self.path.read_text().split()
            return (int(pid), int(started)) if magic == _MAGIC else (0, 0)
        except (OSError, ValueError):
            return 0, 0

    def _sign(self, pid: int) -> None:
        assert self._fd is not None
        text = f"{_MAGIC} {pid} {start_time(pid) or 0}\n".encode()
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))


def start_time(pid: int) -> int | None:
    """When a living process started, in clock ticks since boot; None for a dead or unreaped one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])
