"""Files that are hashed while written and fsynced before anything refers to them."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .failpoint import failpoint

Chunk = bytes | memoryview

BLOCK = 1 << 20
"""Bytes written, or read and hashed, at a time."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and BLAKE2b-256 (hex) of a file."""

    bytes: int
    blake2b: str


def write_file(path: Path, chunks: Iterable[Chunk]) -> FileRecord:
    """Create `path` from `chunks`, fsync it, and say what was meant to be written. Raises OSError."""
    digest = hashlib.blake2b(digest_size=32)
    size = 0
    with path.open("xb", buffering=0) as file:
        for chunk in chunks:
            view = memoryview(chunk)
            for start in range(0, len(view), BLOCK):
                block = view[start : start + BLOCK]
                failpoint()
                _write_all(file.fileno(), block)
                digest.update(block)
                size += len(block)
        failpoint()
        os.fsync(file.fileno())
        failpoint()
    return FileRecord(size, digest.hexdigest())


def hash_file(path: Path) -> FileRecord:
    """Size and hash of what is on disk. Raises OSError."""
    digest = hashlib.blake2b(digest_size=32)
    size = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return FileRecord(size, digest.hexdigest())


def fsync_directory(path: Path) -> None:
    """Make renames and new names inside `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, block: memoryview) -> None:
    while block:
        block = block[os.write(fd, block) :]
