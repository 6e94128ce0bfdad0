"""Bulk bytes on one host: named slots in /dev/shm with a digest. The message carries only the handle.

A slot file is written beside and renamed, so a reader sees a whole file or none; a reader that holds it open is not
hurt when it is unlinked. The folder belongs to the run and is removed by whoever ends the run.
"""

import hashlib
import os
from pathlib import Path

from .weights import Handle


class CorruptSlot(RuntimeError):
    """The bytes under a handle are missing or are not those that were announced."""


def digest(data: bytes | memoryview) -> str:
    """blake2b-128 of the bytes, hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def put(folder: Path, name: str, data: bytes | memoryview) -> Handle:
    """Write one slot. Raises OSError when the memory is full; nothing is left behind then."""
    target, beside = folder / name, folder / f".{name}.{os.getpid()}"
    try:
        beside.write_bytes(data)
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(error.errno, f"{error.strerror} (shared memory for {len(data)} bytes)", str(target)) from error
    kind = "shm" if folder.parts[:3] == ("/", "dev", "shm") else "file"
    return Handle.model_validate({"kind": kind, "path": str(target), "bytes": len(data), "digest": digest(data)})


def get(handle: Handle) -> bytes:
    """The bytes under the handle, verified. Raises CorruptSlot, naming the file and what differs."""
    try:
        data = Path(handle.path).read_bytes()
    except OSError as error:
        raise CorruptSlot(f"{handle.path}: {error.strerror}; ask for a newer version") from None
    if len(data) != handle.bytes or digest(data) != handle.digest:
        raise CorruptSlot(f"{handle.path}: content does not match its digest; ask for a newer version")
    return data


def retain(folder: Path, pattern: str, keep: int) -> None:
    """Unlink all but the newest `keep` slots matching the pattern, and what a crash left half-written.

    Only the writer of these slots may call it.
    """
    for unfinished in folder.glob(f".{pattern}.*"):
        unfinished.unlink(missing_ok=True)
    slots = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
    for old in slots[:-keep]:
        old.unlink(missing_ok=True)
