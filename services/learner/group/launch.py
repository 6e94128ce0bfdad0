"""The other ranks of a group on this host: started by rank 0's process, watched by it, and ended with it.

Each start meets at a port of its own, so that nothing of a group that died is mistaken for a member of the next one.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

END_S = 2.0
"""How long ranks may take to leave once they were told."""
TAIL_BYTES = 2000


class Launched:
    """Ranks 1 to `world` - 1, each with its output in `logs`/NAME.rank-R.log."""

    def __init__(self, world: int, logs: Path, name: str) -> None:
        self.world, self._logs, self._name = world, logs, name
        port = _free_port()
        self.contract = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self._ranks: dict[int, subprocess.Popen[bytes]] = {}
        self.handles: dict[int, int] = {}
        """Rank -> descriptor that is readable when its process has ended."""
        for rank in range(1, world):
            self._ranks[rank] = self._start(rank)
            self.handles[rank] = os.pidfd_open(self._ranks[rank].pid)

    def _start(self, rank: int) -> "subprocess.Popen[bytes]":
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MIDFLIGHT_PARENT": str(os.getpid())}
        with open(self._log(rank), "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "midflight.services.learner.group.follower"],
                env={**os.environ, **self.contract, **place},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def ended(self) -> str | None:
        """What became of a rank that is no more, with its last words; None while all are there."""
        for rank, process in self._ranks.items():
            if (code := process.poll()) is not None:
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                return f"rank {rank} of the learner's {self.world} is gone ({how}): {self._tail(rank)}".rstrip(": ")
        return None

    def close(self) -> None:
        """Wait until all have left; kill those that do not."""
        for process in self._ranks.values():
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                process.wait()
        for handle in self.handles.values():
            os.close(handle)
        self.handles.clear()

    def _log(self, rank: int) -> Path:
        return self._logs / f"{self._name}.rank-{rank}.log"

    def _tail(self, rank: int) -> str:
        try:
            with self._log(rank).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return lines[-1].strip()[:500] if lines else ""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
