"""One worker process as its parent sees it: launch, frames, kill, reap, clean up. Nothing here blocks."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .worker import HEADER, INIT, TAIL, frame

_WORKER = Path(__file__).with_name("worker.py")
_LARGEST_REPORT = 64 << 10  # bytes of one frame from a worker
_READ_AT_ONCE = 1 << 20  # bytes taken before other workers get their turn
LEVELS = ("rlimits",)


@dataclass(frozen=True, slots=True)
class Spec:
    """What every worker of a pool is started with. `file` is read once: all workers run the same source.

    Units: seconds and bytes. `memory_bytes` limits the address space, which libraries such as torch fill without
    using it. `env` names variables of the parent that the worker may see; `python_path` is appended to `sys.path`;
    `scratch` is where the workers' folders are made (default: the system's folder for temporary files).
    """

    file: Path
    time_limit_s: float = 10.0
    memory_bytes: int = 1 << 30
    env: tuple[str, ...] = ()
    python_path: tuple[str, ...] = ()
    scratch: Path | None = None
    level: str = "rlimits"


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame from the worker; `body` is JSON or empty."""

    kind: bytes
    job: int
    body: bytes


class ProtocolError(Exception):
    """The worker's bytes are not frames: something other than worker.py writes to the channel."""


def check_level(level: str) -> None:
    """Raise ValueError unless workers can be started at this isolation level."""
    if level not in LEVELS:
        raise ValueError(f"reward isolation {level!r} is not available here - use one of {', '.join(LEVELS)}")


def worker_argv(level: str, jobs: int, verdicts: int) -> list[str]:
    """Return the command that starts a worker at an isolation level; the seam for the full sandbox.

    Level "rlimits" bounds wall time, CPU time, address space, file size and open files, gives a clean environment
    and an empty home, and kills the process group. It does NOT stop code that reads or writes other files of this
    user, opens network connections, traces processes, leaves its group by setsid() and so outlives the kill, forks
    without bound, or searches its own process for the verdict channel. So it is for code that you trust.

    Raises:
        ValueError: the level is not available.
    """
    check_level(level)
    return [sys.executable, "-I", "-u", str(_WORKER), str(jobs), str(verdicts), str(os.getpid())]


def clean_env(home: Path, allowed: tuple[str, ...]) -> dict[str, str]:
    """Return the worker's whole environment: PATH, HOME and TMPDIR (its folder), LANG and the allowed names."""
    env = {name: os.environ[name] for name in ("PATH", *allowed) if name in os.environ}
    return {"LANG": "C.UTF-8", **env, "HOME": str(home), "TMPDIR": str(home)}


class WorkerProcess:
    """A started worker. Register `verdicts` and `pidfd` with a poller; the latter is readable once it has died.

    Raises:
        OSError: the process could not be started; nothing is left behind.
    """

    def __init__(self, spec: Spec, source: str) -> None:
        with contextlib.ExitStack() as undo:
            self._folder = Path(tempfile.mkdtemp(prefix="midflight-reward-", dir=spec.scratch))
            undo.callback(shutil.rmtree, self._folder, ignore_errors=True)
            theirs_in, self._jobs = os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, self._jobs)
            self.verdicts, theirs_out = os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, self.verdicts)
            for fd in (self._jobs, self.verdicts):
                os.set_blocking(fd, False)
            try:
                self._process = self._launch(spec, theirs_in, theirs_out)
            finally:
                os.close(theirs_in)
                os.close(theirs_out)
            self.pid = self._process.pid
            self.pidfd = os.pidfd_open(self.pid)
            self._close = undo.pop_all()
        self._close.callback(os.close, self.pidfd)
        self.ended = False
        self._received, self._unsent = bytearray(), bytearray()
        init = {
            "path": str(spec.file.resolve()),
            "source": source,
            "python_path": spec.python_path,
            "memory_bytes": spec.memory_bytes,
            "time_limit_s": spec.time_limit_s,
        }
        self.send(frame(INIT, body=json.dumps(init).encode()))

    def _launch(self, spec: Spec, jobs: int, verdicts: int) -> "subprocess.Popen[bytes]":
        home = self._folder / "home"
        home.mkdir()
        with open(self._folder / "output", "ab") as output:
            return subprocess.Popen(
                worker_argv(spec.level, jobs, verdicts),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(jobs, verdicts),
                cwd=home,
                env=clean_env(home, spec.env),
                start_new_session=True,
            )

    def send(self, data: bytes) -> None:
        """Queue bytes and write what the pipe takes now; the rest follows at the next `flush`."""
        self._unsent += data
        self.flush()

    def flush(self) -> None:
        """Write what the pipe takes. A worker that is gone takes nothing; its pidfd tells the rest."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._unsent:
                del self._unsent[: os.write(self._jobs, self._unsent)]

    def receive(self) -> Iterator[Frame]:
        """Yield the frames that have arrived; `ended` says whether the channel is at its end.

        Raises:
            ProtocolError: what follows the frames yielded so far is no frame.
        """
        taken = 0
        while taken < _READ_AT_ONCE and not self.ended:
            try:
                chunk = os.read(self.verdicts, 1 << 16)
            except BlockingIOError:
                break
            self._received += chunk
            taken, self.ended = taken + len(chunk), not chunk
        while len(self._received) >= HEADER.size:
            kind, length, job = HEADER.unpack_from(self._received)
            if length > _LARGEST_REPORT:
                raise ProtocolError(f"a frame of {length} bytes")
            end = HEADER.size + length
            if len(self._received) < end:
                break
            body = bytes(self._received[HEADER.size : end])
            del self._received[:end]
            yield Frame(kind, job, body)

    def abort(self) -> None:
        """Ask the worker to print where it is and die (SIGABRT); it may refuse."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGABRT)

    def kill(self) -> None:
        """Kill the worker's whole process group. Safe until `reap`, since the pid stays ours until then."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Kill what is left of the group and collect a worker that died: its exit status, or minus its signal."""
        self.kill()
        return self._process.wait()

    def output_tail(self) -> str:
        """Return the end of what the worker printed; nothing if the user's code removed the file."""
        try:
            with open(self._folder / "output", "rb") as output:
                output.seek(max(0, output.seek(0, os.SEEK_END) - TAIL))
                return output.read().decode(errors="replace").strip()
        except OSError:
            return ""

    def close(self) -> None:
        """Close the channels and remove the worker's folder; after `reap`."""
        self._close.close()
