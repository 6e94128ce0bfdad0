"""Files that are whole or absent, folders that are ours alone, and the file system a path lies on."""

import contextlib
import os
import re
import secrets
import stat
from pathlib import Path

from .errors import RunDirError


def atomic_write(path: str | os.PathLike[str], data: bytes, mode: int = 0o600) -> None:
    """Replace the file at `path` by `data`: after a crash it holds either the old bytes or all the new ones.

    Written beside, fsynced, renamed, and the folder fsynced. Raises OSError, leaving the old file as it was.
    """
    target = Path(path)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    sync_folder(target.parent)


def sync_folder(path: Path) -> None:
    """Make renames and new names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_private(path: Path) -> None:
    """Make or take over a folder with mode 0700. Raises RunDirError unless it is a real folder of ours."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise RunDirError(f"{path} is not a directory - remove it or choose another --run-dir")
    if found.st_uid != os.geteuid():
        raise RunDirError(f"{path} belongs to user {found.st_uid}, not to us - choose another --run-dir")
    if found.st_mode & 0o077:
        os.chmod(path, 0o700)


def file_system(path: Path, mounts: str) -> tuple[str, str]:
    """Type and mount point of the file system `path` lies on, from the text of `/proc/mounts`.

    The longest mount point that contains the path wins, the later one among equals, as in the kernel.
    """
    best = ("unknown", "")
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[1])
        inside = path == Path(mount) or Path(mount) in path.parents
        if inside and len(mount) >= len(best[1]):
            best = (fields[2], mount)
    return best
