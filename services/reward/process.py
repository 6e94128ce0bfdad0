"""One worker process as its parent sees it: launch, frames, kill, reap, clean up. Nothing here blocks."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .sandbox.channel import HEADER, INIT, LARGEST_REPORT, TAIL, frame
from .sandbox.levels import SEALED, argv

_READ_AT_ONCE = 1 << 20  # bytes taken before other workers get their turn
_DYING_S = 5.0  # seconds that a namespace may take to die after its SIGKILL


@dataclass(frozen=True, slots=True)
class Spec:
    """What every worker of a pool is started with. `file` is read once: all workers run the same source.

    Units: seconds and bytes. `memory_bytes` limits the address space, which libraries such as torch fill without
    using it. `env` names variables of the parent that the worker may see; `python_path` is appended to `sys.path`;
    `scratch` is where the workers' folders are made (default: the system's folder for temporary files). `level` is one
    of `sandbox.levels.LOCAL`; `network` leaves a sealed worker the machine's network.
    """

    file: Path
    time_limit_s: float = 10.0
    memory_bytes: int = 1 << 30
    env: tuple[str, ...] = ()
    python_path: tuple[str, ...] = ()
    scratch: Path | None = None
    level: str = "rlimits"
    network: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame from the worker; `body` is JSON or empty."""

    kind: bytes
    job: int
    body: bytes


class ProtocolError(Exception):
    """The worker's bytes are not frames: something other than our code writes to the channel."""


def clean_env(home: Path, allowed: tuple[str, ...]) -> dict[str, str]:
    """Return a trusted worker's whole environment: PATH, HOME and TMPDIR (its folder), LANG and the allowed names."""
    return {"LANG": "C.UTF-8", **passed_env(allowed), "HOME": str(home), "TMPDIR": str(home)}


def passed_env(allowed: tuple[str, ...]) -> dict[str, str]:
    """Return PATH and the variables allowed by name; a sealed worker has HOME besides, and no more."""
    return {name: os.environ[name] for name in ("PATH", *allowed) if name in os.environ}


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
        self.sealed = spec.level in SEALED
        self._inner: int | None = None
        self.ended = False
        self._received, self._unsent = bytearray(), bytearray()
        init = {
            "path": str(spec.file.resolve()),
            "source": source,
            "python_path": spec.python_path,
            "memory_bytes": spec.memory_bytes,
            "time_limit_s": spec.time_limit_s,
            "env": passed_env(spec.env),
            "network": spec.network,
        }
        self.send(frame(INIT, body=json.dumps(init).encode()))

    def _launch(self, spec: Spec, jobs: int, verdicts: int) -> "subprocess.Popen[bytes]":
        home = self._folder / "home"
        home.mkdir()
        with open(self._folder / "output", "ab") as output:
            return subprocess.Popen(
                argv(spec.level, jobs, verdicts, spec.python_path, network=spec.network),
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
            if self.sealed and self._inner is None and chunk:
                self._meet()
        while len(self._received) >= HEADER.size:
            kind, length, job = HEADER.unpack_from(self._received)
            if length > LARGEST_REPORT:
                raise ProtocolError(f"a frame of {length} bytes")
            end = HEADER.size + length
            if len(self._received) < end:
                break
            body = bytes(self._received[HEADER.size : end])
            del self._received[:end]
            yield Frame(kind, job, body)

    def _meet(self) -> None:
        """Take hold of the sandbox's PID 1, the one child of its keeper: with it everything inside dies."""
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            self._inner = os.pidfd_open(int(children[0]))
            self._close.callback(os.close, self._inner)

    def abort(self) -> None:
        """Ask the worker to print where it is and die (SIGABRT), which it may refuse; a sealed one is killed."""
        if self.sealed:
            self.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGABRT)

    def kill(self) -> None:
        """Kill the worker's whole process group or PID namespace. Safe until `reap`: the pid stays ours until then."""
        with contextlib.suppress(ProcessLookupError):
            if self._inner is None:
                os.killpg(self.pid, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGCONT)  # a keeper that was stopped would not see the end of its ward
                signal.pidfd_send_signal(self._inner, signal.SIGKILL)

    def reap(self) -> int:
        """Kill what is left of it and collect a worker that died: its exit status, or minus its signal.

        When its keeper alone was killed, PID 1 is dying: it takes the kernel milliseconds to end all that is inside.
        """
        self.kill()
        if self._inner is not None:
            death = select.poll()
            death.register(self._inner, select.POLLIN)
            death.poll(_DYING_S * 1000)
        status = self._process.wait()
        return 128 - status if self.sealed and status > 128 else status

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
