"""Start a run: prepare its directory, then leave it to a warden that owns the lock and every process from there on."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from midflight.messages.envelope import MAJOR

from .config import Loaded
from .resume import changed, differences
from .rundir import RunDir, RunDirError, RunInfo, create_shm, link_current, new_run_id, sweep_shm

LEAST_FREE = 16 << 20
"""Bytes without which a run does not begin; how many it will need depends on its model and data."""


class ResumeError(Exception):
    """There is nothing to resume, or what is there does not fit the topology."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A started run. `warden` is our child; the run outlives us."""

    run_dir: RunDir
    run_id: str
    warden: "subprocess.Popen[bytes]"
    resumed: bool = False
    differs: tuple[str, ...] = ()
    """Keys that a resumed run last ran with otherwise, a line each."""


def prepare(loaded: Loaded, run_dir: Path | None, resume: bool) -> tuple[RunDir, str, list[str]]:
    """Create or take over a run directory under its lock and write everything a kernel needs.

    -> (directory, run id, what a resumed run last ran with otherwise).

    Raises ResumeError, RunDirError, RunDirBusy; nothing has been started or changed then.
    """
    run_id = new_run_id(loaded.topology.run)
    folder = RunDir(run_dir or Path("runs") / run_id)
    exists = folder.ledger_db.exists() or folder.config_json.exists()
    if resume and not exists:
        raise ResumeError(f"{folder.path}: no run to resume here; leave --resume out to start one")
    if exists and not resume and not folder.is_live():
        raise ResumeError(f"{folder.path}: a run was here; --resume goes on with it, --run-dir names another place")
    differs: list[str] = []

    def compare() -> None:
        if what := changed(folder, loaded):
            raise ResumeError(f"{folder.path}: {what}")
        differs.extend(differences(folder, loaded))

    with _writing(folder.path):
        folder.create()
        if not folder.is_live():
            _look_for_room(folder.path)
        folder.hold(compare if resume else None)
    if folder.previous:
        run_id = folder.previous.run_id
    sweep_shm(folder.shm_root)
    with _writing(folder.shm_root):
        create_shm(run_id, folder.path, folder.shm_root)
    with _writing(folder.path):
        folder.write_json(folder.config_json, loaded.data)
        folder.write_json(folder.origins_json, loaded.origins_json())
    info = RunInfo(
        run=loaded.topology.run,
        run_id=run_id,
        pid=os.getpid(),
        started_ns=time.time_ns(),
        protocol=MAJOR,
        endpoints=folder.endpoints(),
        topology_hash=loaded.hash,
    )
    with _writing(folder.path):
        folder.publish(info)
    return folder, run_id, differs


def _look_for_room(path: Path) -> None:
    """On a full disk nothing could be written of why nothing works. Raises RunDirError."""
    room = os.statvfs(path)
    free = room.f_bavail * room.f_frsize
    if room.f_blocks and free < LEAST_FREE:
        least = f"a run needs {LEAST_FREE >> 20} MiB at the very least"
        raise RunDirError(
            f"{path}: {free >> 10} KiB are free on its disk, and {least} - free some, or choose another --run-dir"
        )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What is written there may not fit: the system does not say where. Raises RunDirError."""
    try:
        yield
    except OSError as error:
        raise RunDirError(f"{path}: cannot be written: {error.strerror or error}") from error


def launch(
    loaded: Loaded, run_dir: Path | None = None, resume: bool = False, warden_options: Sequence[str] = ()
) -> Launched:
    """Prepare and start the warden; it starts the kernel, which starts everything else.

    `warden_options`: words of the warden's command line, such as `--watchdog 3`.
    """
    folder, run_id, differs = prepare(loaded, run_dir, resume)
    kernel = [sys.executable, "-P", "-m", "midflight.kernel.main", str(folder.path)]
    argv = [
        sys.executable,
        "-P",
        "-m",
        "midflight.kernel.warden",
        "--run-id",
        run_id,
        *warden_options,
        str(folder.path),
        "--",
        *kernel,
    ]
    output = os.open(folder.logs / "warden.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        warden = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[folder.lock.descriptor],
        )
    finally:
        os.close(output)
    folder.lock.hand_over(warden.pid)
    with contextlib.suppress(OSError):  # a convenience; the run lives, and says so, without it
        link_current(folder)
    return Launched(folder, run_id, warden, resume, tuple(differs))
