"""`RunDir`: the layout of one run directory, its lock, its addresses and its `run.json`."""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import RunDirError
from .files import atomic_write, file_system, make_private
from .lock import Lock
from .shm import SHM_ROOT, remove_shm

MAX_SOCKET_BYTES = 100
"""Longest socket path used as it is: the system allows 107 bytes."""

ENDPOINTS = ("ctl", "ev", "data")
_SOCKETS = ("warden.sock", *(f"{name}.ipc" for name in ENDPOINTS))
_FIRST = {"lock", "logs", "checkpoints"}  # what a crash before the first `hold` can leave
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs", "fuse.sshfs", "fuse.glusterfs"})


@dataclass(frozen=True, slots=True)
class RunInfo:
    """`run.json`: what a client needs to reach a run.

    `started_ns` is wall-clock nanoseconds, for people; `protocol` the major version of the messages;
    `endpoints` ZeroMQ addresses under the names ctl, ev and data.
    """

    run: str
    run_id: str
    pid: int
    started_ns: int
    protocol: int
    endpoints: dict[str, str]
    topology_hash: str


def new_run_id(run: str) -> str:
    """`<run>-<8 hex digits>`."""
    return f"{run}-{secrets.token_hex(4)}"


class RunDir:
    """One run directory. Reading a living run's is safe: only `create` and `hold` change what is there."""

    def __init__(self, path: str | os.PathLike[str], shm_root: Path = SHM_ROOT) -> None:
        self.path = Path(os.path.realpath(path))
        self.shm_root = shm_root
        self.lock = Lock(self.path / "lock")
        self.previous: RunInfo | None = None
        """The `run.json` that `hold` found and removed: the run this one may resume."""
        self.run_json = self.path / "run.json"
        self.config_json = self.path / "config.json"
        self.origins_json = self.path / "origins.json"
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"
        self.ledger_db = self.path / "ledger.sqlite"
        self.journal = self.path / "journal.bin"
        self.metrics = self.path / "metrics.jsonl"

    def create(self) -> Self:
        """Make the directory, mode 0700, with `logs/` and `checkpoints/`; a former run's is kept as it is.

        Raises RunDirError for a directory that is not empty and not a run's, that belongs to someone else,
        or that lies on a network file system, where SQLite's write-ahead log is not safe.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            make_private(self.path)
            if set(os.listdir(self.path)) - _FIRST and not self.is_run():
                raise RunDirError(
                    f"{self.path} is not empty and not a run directory - choose another --run-dir or an empty one"
                )
            kind, mount = file_system(self.path, Path("/proc/mounts").read_text())
            if kind in _REMOTE:
                raise RunDirError(
                    f"{self.path} is on {kind} (mounted at {mount}), where the ledger is not safe - "
                    "choose a --run-dir on a local disk"
                )
            make_private(self.logs)
            make_private(self.checkpoints)
        except OSError as error:
            raise RunDirError(f"cannot create {self.path}: {error.strerror}") from error
        return self

    def is_run(self) -> bool:
        """Whether this is, or was, a run's directory."""
        return self.lock.is_ours()

    def is_live(self) -> bool:
        """Whether a living process holds this directory."""
        return self.lock.is_live()

    def hold(self, first: Callable[[], None] | None = None) -> Self:
        """Take the lock until `release` or the end of this process, and clear what a dead run left.

        That is its sockets, `run.json` (kept as `previous`) and shared memory. `first` is called under the lock before
        anything is cleared: what it raises gives the lock back, and all is as it was. Raises RunDirBusy.
        """
        if not self.lock.held:
            self.lock.acquire()
            try:
                if first:
                    first()
                self._clear()
            except BaseException:
                self.lock.release()
                raise
        return self

    def release(self) -> None:
        """Remove the sockets and give the lock back; `run.json` stays to tell what ran here."""
        if self.lock.held:
            self.remove_sockets()
            self.lock.release()

    def __enter__(self) -> Self:
        return self.hold()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def socket_dir(self) -> Path:
        """Where sockets lie: here, or in a private hashed directory when this path is too long for one.

        Raises RunDirError when that directory is not ours alone.
        """
        if len(os.fsencode(self.path / "warden.sock")) <= MAX_SOCKET_BYTES:
            return self.path
        name = f"midflight-{hashlib.blake2b(os.fsencode(self.path), digest_size=8).hexdigest()}"
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")  # noqa: S108 (make_private checks it)
        if not base.is_dir() or len(os.fsencode(base / name / "warden.sock")) > MAX_SOCKET_BYTES:
            base = Path("/tmp")  # noqa: S108 (make_private checks it)
        make_private(base / name)
        return base / name

    def endpoints(self) -> dict[str, str]:
        """ZeroMQ addresses under the names ctl, ev and data."""
        folder = self.socket_dir()
        return {name: f"ipc://{folder}/{name}.ipc" for name in ENDPOINTS}

    def publish(self, info: RunInfo) -> None:
        """Write `run.json`: the run can be reached from now on."""
        self.write_json(self.run_json, asdict(info))

    def info(self) -> RunInfo | None:
        """`run.json`, or None when it is absent or not one of ours."""
        try:
            return RunInfo(**json.loads(self.run_json.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def name(self) -> str:
        """What the run is called: by its `run.json`, else by its topology; empty when neither says."""
        if info := self.info():
            return info.run
        try:
            return str(json.loads(self.config_json.read_bytes())["run"])
        except (OSError, ValueError, TypeError, KeyError):
            return ""

    def write_json(self, path: Path, data: object) -> None:
        """Write a JSON file of this directory, atomically, mode 0600."""
        atomic_write(path, json.dumps(data, indent=1, allow_nan=False).encode() + b"\n")

    def _clear(self) -> None:
        """Remove what a dead run left behind."""
        self.previous = self.info()
        self.remove_sockets()
        self.run_json.unlink(missing_ok=True)
        if self.previous:
            with contextlib.suppress(RunDirError):  # a damaged run.json may name no run
                remove_shm(self.previous.run_id, self.shm_root)

    def remove_sockets(self) -> None:
        """Remove the run's sockets, and the directory that a long path put them in."""
        folder = self.socket_dir()
        for name in _SOCKETS:
            (folder / name).unlink(missing_ok=True)
        if folder != self.path and not os.listdir(folder):
            folder.rmdir()
