"""Another host, on this machine: `midflight join` in a folder of its own, which shares nothing but TCP with the run."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from midflight.kernel.process import processes

from .e2e_run import DEADLINE_S, LOOK_S, VERB, environment

FOLLOWER = b"learner.group.follower"


def followers_of(parent: int) -> list[int]:
    """Processes of ranks that a process has started."""
    return [stat.pid for stat in processes() if stat.parent == parent and stat.state != "Z" and _follows(stat.pid)]


def _follows(pid: int) -> bool:
    try:
        return FOLLOWER in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


class Elsewhere:
    """One `midflight join`, running in `folder`; its ranks live in `folder`/ranks."""

    def __init__(self, folder: Path, ticket: Path, *arguments: str) -> None:
        folder.mkdir(exist_ok=True)
        self.ranks_dir = folder / "ranks"
        self.out = folder / "join.out"
        with self.out.open("ab") as output:
            self.process = subprocess.Popen(
                [*VERB, "join", str(ticket), "--dir", str(self.ranks_dir), *arguments],
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def said(self) -> str:
        """What it has printed."""
        return self.out.read_text()

    def rank(self, besides: Sequence[int] = ()) -> int:
        """The process of its rank, waited for; another one than `besides`."""
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            if fresh := [pid for pid in followers_of(self.process.pid) if pid not in besides]:
                return fresh[0]
            time.sleep(LOOK_S)
        raise AssertionError(f"no rank here:\n{self.said}")

    def kill_rank(self, signum: int = signal.SIGKILL) -> int:
        """Signal its rank; -> the process."""
        pid = self.rank()
        os.kill(pid, signum)
        return pid

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(DEADLINE_S)
