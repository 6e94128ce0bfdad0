"""`midflight tui` as a person runs it: in a pseudo-terminal whose screen can be read."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte

from .e2e_run import VERB, environment

COLUMNS, ROWS = 140, 40
DEADLINE_S = 60.0


class Terminal:
    """The process, and what it has drawn."""

    def __init__(self, run: Path, *words: str, size: tuple[int, int] = (COLUMNS, ROWS)) -> None:
        self.screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self.screen)
        environ = {**environment(), "TERM": "xterm-256color", "LANG": "C.UTF-8", "XDG_CONFIG_HOME": "/nonexistent"}
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execve(VERB[0], [*VERB, "tui", "--run", str(run), *words], environ)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self._status: int | None = None

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)

    @property
    def text(self) -> str:
        """The screen."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def write(self, keys: str) -> None:
        """Press keys, in one burst."""
        os.write(self._fd, keys.encode())

    def read(self, seconds: float) -> bool:
        """Draw what comes within this time; -> whether the process still holds the terminal."""
        ready, _, _ = select.select([self._fd], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:
            return False
        self._stream.feed(data)
        return bool(data)

    def until(self, what: str, found: Callable[[str], object]) -> None:
        """Draw until the screen shows it; fails the test, with the screen, after a deadline."""
        deadline = time.monotonic() + DEADLINE_S
        while not found(self.text):
            assert self.read(0.05), f"it left before {what}:\n{self.text}"
            assert time.monotonic() < deadline, f"no {what}:\n{self.text}"

    def shows(self, wanted: str) -> None:
        """Draw until a text is on the screen."""
        self.until(repr(wanted), lambda text: wanted in text)

    def threads(self) -> int:
        """How many it has."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def stop(self) -> None:
        """Stop it in a way it cannot notice."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on; it draws all anew."""
        self.screen.reset()
        os.kill(self.pid, signal.SIGCONT)

    def leave(self) -> int:
        """Press `q` and wait for the end; -> the exit code."""
        self.write("q")
        deadline = time.monotonic() + DEADLINE_S
        while self.read(0.05):
            assert time.monotonic() < deadline, f"q does not end it:\n{self.text}"
        _, status = os.waitpid(self.pid, 0)
        self._status = os.waitstatus_to_exitcode(status)
        return self._status
