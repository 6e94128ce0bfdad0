"""A launched process with all that it starts: one process group, ended as a whole."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from midflight.kernel.children import private, tail
from midflight.kernel.process import processes

from .command import LAUNCHER


class Process:
    """Output goes to the file `log`. It ends with the thread that launched it."""

    def __init__(self, inner: asyncio.subprocess.Process, log: Path) -> None:
        self._inner, self._log = inner, log
        self._helpers: set[int] = set()

    @classmethod
    async def launch(cls, python: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> Self:
        """Run the module argv[0] with the rest as its arguments. Raises OSError."""
        with open(log, "ab", opener=private) as out:
            inner = await asyncio.create_subprocess_exec(
                python,
                str(LAUNCHER),
                str(os.getpid()),
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=dict(env),
                process_group=0,
            )
        return cls(inner, log)

    @property
    def pid(self) -> int:
        """Of the leader; its number is the group's too."""
        return self._inner.pid

    def ended(self) -> str | None:
        """How it ended, or that one of the processes it had started did; None while all are there."""
        if self._inner.returncode is not None:
            return f"process {self.pid} ended with code {self._inner.returncode}: {self.tail()}"
        gone = self._helpers - self._children()
        return f"process {min(gone)}, a part of server {self.pid}, is gone: {self.tail()}" if gone else None

    def settled(self) -> None:
        """It has started all that it needs: from here on none of these may be missing."""
        self._helpers = self._children()

    async def kill(self) -> None:
        """SIGKILL to the whole group; back when the leader is reaped."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._inner.wait()

    def _children(self) -> set[int]:
        return {stat.pid for stat in processes() if stat.parent == self.pid and stat.state not in "ZX"}

    def tail(self) -> str:
        """The end of its output, on one line."""
        lines = tail(self._log).splitlines()
        return " | ".join(line.strip() for line in lines[-6:] if line.strip())
