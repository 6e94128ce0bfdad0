"""A sink as the tracker sees it: a child process to ring when the file has grown, and to start again when it dies.

Nothing here waits for the sink, except `close`. Times are monotonic seconds.
"""

import contextlib
import math
import os
import select
import subprocess
import sys
from pathlib import Path

GIVE_UP = 78  # EX_CONFIG: the exit status of a sink for which another try is useless
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0  # seconds
_STABLE = 60.0  # seconds alive after which the next death counts as the first


def sink_argv(kind: str, jsonl: Path, state: Path, run: str, **options: str) -> list[str]:
    """Return the command of a sink; `options` are project, uri (mlflow), dir and mode (wandb)."""
    argv = [sys.executable, "-P", "-m", "midflight.services.tracker.sink", f"--kind={kind}", f"--jsonl={jsonl}"]
    return [*argv, f"--state={state}", f"--run={run}", *(f"--{name}={value}" for name, value in options.items())]


class SinkProcess:
    """Keeps one sink alive. `log` takes its output. `problem` says why it was given up, if it was."""

    def __init__(self, argv: list[str], log: Path) -> None:
        self._argv, self._log = argv, log
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._start_at = -math.inf
        self._wait = _FIRST_WAIT
        self._ending = False
        self.restarts = 0
        self.problem = ""

    @property
    def pid(self) -> int | None:
        """The living sink's process id."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Whether a process runs."""
        return self._process is not None

    def next_deadline(self) -> float:
        """Return when `tick` has something to start (infinity: it only looks for a death)."""
        return math.inf if self.alive or self.problem or self._ending else self._start_at

    def tick(self, now: float) -> None:
        """Collect a sink that died, and start it when its time has come."""
        if self._process is not None and self._process.poll() is not None:
            self._bury(self._process.returncode, now)
        if now >= self.next_deadline():
            self._start(now)

    def notify(self) -> None:
        """Tell the sink that there is more to read. Never blocks: a full pipe is news enough."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(self._process.stdin.fileno(), b"\n")

    def finish(self) -> None:
        """Ask the sink to send the rest, close its run and leave; it is not started again."""
        self._ending = True
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.stdin = None

    def close(self, timeout_s: float) -> bool:
        """Finish, wait at most `timeout_s` seconds, then kill. Return whether the sink left by itself."""
        self.finish()
        if self._process is None:
            return True
        death = select.poll()
        fd = os.pidfd_open(self._process.pid)
        death.register(fd, select.POLLIN)
        left = bool(death.poll(timeout_s * 1000))
        os.close(fd)
        if not left:
            self._process.kill()
        self._process.wait()
        self._process = None
        return left

    def _start(self, now: float) -> None:
        with open(self._log, "ab") as output:
            try:
                self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=output, stderr=output)
            except OSError:
                self._later(now)
                return
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._started = now

    def _bury(self, status: int, now: float) -> None:
        assert self._process is not None
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
        if status == GIVE_UP:
            self.problem = f"gave up, see {self._log}"
            return
        if now - self._started >= _STABLE:
            self._wait = _FIRST_WAIT
        self.restarts += 1
        self._later(now)

    def _later(self, now: float) -> None:
        self._start_at = now + self._wait
        self._wait = min(_LONGEST_WAIT, 2 * self._wait)
