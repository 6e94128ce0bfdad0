"""A run's directory in shared memory, for weights: /dev/shm/midflight-<run id>/, mode 0700.

It holds a file `owner` with the path of the run directory. The directory appears under its name only with
that file in it, so that a sweep can tell a dead run's memory from one that is just being made.
"""

import os
import re
import shutil
from pathlib import Path

from .errors import RunDirError
from .files import make_private
from .lock import Lock

SHM_ROOT = Path("/dev/shm")  # noqa: S108 (the memory file system itself, not a temporary file)

_NAME = re.compile(r"midflight-([a-z0-9][a-z0-9_.-]{0,39}-[0-9a-f]{8})(?:\.([0-9]+)\.new)?")


def shm_path(run_id: str, root: Path = SHM_ROOT) -> Path:
    """Where the shared memory of a run lies. Raises RunDirError for what is not a run id."""
    path = root / f"midflight-{run_id}"
    if not _NAME.fullmatch(path.name):
        raise RunDirError(f"{run_id!r} is not a run id")
    return path


def create_shm(run_id: str, run_dir: Path, root: Path = SHM_ROOT) -> Path:
    """Make the shared-memory directory of the run in `run_dir`, or return the one it has."""
    path = shm_path(run_id, root)
    if not (path / "owner").exists():
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        make_private(new)
        (new / "owner").write_text(f"{os.path.realpath(run_dir)}\n")
        os.rename(new, path)
    make_private(path)
    return path


def remove_shm(run_id: str, root: Path = SHM_ROOT) -> None:
    """Remove the shared memory of a run that has ended."""
    shutil.rmtree(shm_path(run_id, root), ignore_errors=True)


def sweep_shm(root: Path = SHM_ROOT) -> list[Path]:
    """Remove the shared memory of our dead runs; returns what was removed."""
    removed = []
    for path in sorted(root.glob("midflight-*")):
        match = _NAME.fullmatch(path.name)
        if match and _is_ours(path) and not _has_owner(path, match[2]):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def _is_ours(path: Path) -> bool:
    try:
        return path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.geteuid()
    except OSError:
        return False


def _has_owner(path: Path, maker: str | None) -> bool:
    """Whether the run (or, for an unfinished directory, the process that makes it) still lives."""
    if maker:
        return os.path.exists(f"/proc/{maker}")
    try:
        owner = Path((path / "owner").read_text().rstrip("\n"))
    except OSError:
        return False
    return Lock(owner / "lock").is_live()
