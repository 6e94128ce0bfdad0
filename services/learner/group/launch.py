"""Ranks of a group on this host: started by one process, watched by it, and ended with it.

That process is rank 0's, or `midflight join`. Each start has a store at a port of its own and a generation that no
other has, so that nothing of a group that died is mistaken for a member of the next one.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from midflight.kernel.children import private, tail

END_S = 2.0
"""How long ranks may take to leave once they were told."""


def contract(world: int, address: str, port: int, generation: str) -> dict[str, str]:
    """What all ranks of a group have in common in their environment."""
    meeting = {"WORLD_SIZE": str(world), "MASTER_ADDR": address, "MASTER_PORT": str(port)}
    return {**meeting, "MIDFLIGHT_GROUP": generation, "TORCHELASTIC_USE_AGENT_STORE": "False"}


class Launched:
    """Processes of `ranks`, each with its output in `logs`/NAME.rank-R.log.

    local: number of the first among the ranks of this host. environment: of each; their own place is added.
    """

    def __init__(self, ranks: range, local: int, logs: Path, name: str, environment: Mapping[str, str]) -> None:
        self._logs, self._name = logs, name
        self._ranks: dict[int, subprocess.Popen[bytes]] = {}
        self.handles: dict[int, int] = {}
        """Rank -> descriptor that is readable when its process has ended."""
        for at, rank in enumerate(ranks):
            place = {"RANK": str(rank), "LOCAL_RANK": str(local + at), "MIDFLIGHT_PARENT": str(os.getpid())}
            self._ranks[rank] = self._start(rank, {**environment, **place})
            self.handles[rank] = os.pidfd_open(self._ranks[rank].pid)

    def _start(self, rank: int, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        with open(self._log(rank), "ab", opener=private) as out:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "midflight.services.learner.group.follower"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    @property
    def pids(self) -> list[int]:
        """Of its ranks, in their order."""
        return [process.pid for process in self._ranks.values()]

    def ended(self) -> dict[int, str]:
        """Ranks that are no more: how each ended, with its last words unless a signal cut it short."""
        found = {}
        for rank, process in self._ranks.items():
            if (code := process.poll()) is not None:
                last = tail(self._log(rank)).rpartition("\n")[2].strip()[:500]
                own = f"exit code {code}: {last}".rstrip(": ")
                found[rank] = f"killed by {signal.Signals(-code).name}" if code < 0 else own
        return found

    def close(self, within_s: float = END_S) -> None:
        """Wait until all have left; kill those that do not."""
        until = time.monotonic() + within_s
        for process in self._ranks.values():
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                process.wait()
        for handle in self.handles.values():
            os.close(handle)
        self.handles.clear()

    def _log(self, rank: int) -> Path:
        return self._logs / f"{self._name}.rank-{rank}.log"
