"""Checkpoint directories that are either whole and verified, or not there.

    <root>/step-00000020/{model.safetensors, optimizer.safetensors, state.json, manifest.json}

A save (`saving.save`) writes `.tmp-step-00000020-<pid>` beside the others: every file is hashed while written and
fsynced, by the rank whose it is; the manifest (sizes, hashes, step, the caller's `extra`, and a digest of itself)
comes last, then one rename, then an fsync of the parent. A crash leaves at most a `.tmp-*`, which `sweep` removes; so
does one while an old checkpoint is deleted.
Verifying reads every byte.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from midflight.kernel.mistake import UserMistake

from .durable import Chunk, FileRecord, fsync_directory, hash_file, write_file
from .failpoint import failpoint

FORMAT = 2
FORMATS = (1, 2)
"""That are read. Format 1 was written by one rank, and held the random states of one."""
HASHERS = 4
"""Files that are verified at a time."""
MANIFEST = "manifest.json"
PRUNED = ".tmp-pruned-"

TOLD = 4
"""Damaged checkpoints that a refusal names."""

_STEP = re.compile(r"step-(\d{8,})")
_OLD = re.compile(r"\.old-(step-\d{8,})-\d+")


class CheckpointError(Exception):
    """A checkpoint cannot be written, or is not what its manifest says; the message names file and reason."""


class UnusableCheckpoint(CheckpointError, UserMistake):
    """Whole, perhaps, but nothing to go on from here: another model wrote it, or what it needs is gone."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a verified checkpoint holds. `extra` is the caller's JSON, e.g. ledger position and knobs.

    `digest` is the BLAKE2b-256 (hex) of everything else here, so it names the checkpoint's whole content.
    """

    step: int
    files: dict[str, FileRecord]
    extra: dict[str, Any]
    digest: str


@dataclass(frozen=True, slots=True)
class Found:
    """The newest verified checkpoint (None when there is none) and why newer ones were passed over."""

    path: Path | None
    manifest: Manifest | None
    skipped: tuple[str, ...]


NOTHING = Found(None, None, ())


@contextmanager
def draft(root: Path, step: int) -> Iterator[Path]:
    """A folder for the files of a step; it is gone at the end, unless `seal` has made it a checkpoint.

    Raises CheckpointError for whatever the disk refuses (full, read-only); earlier checkpoints stay as they were.
    """
    temporary = root / f".tmp-{step_name(step)}-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
    except OSError as error:
        raise CheckpointError(
            f"cannot write checkpoint {root / step_name(step)}: {error}; older ones remain"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fill(folder: Path, files: Mapping[str, Iterable[Chunk]]) -> dict[str, FileRecord]:
    """Write files, each durable when this returns. Raises OSError."""
    return {name: write_file(folder / name, chunks) for name, chunks in files.items()}


def seal(folder: Path, step: int, records: Mapping[str, FileRecord], extra: Mapping[str, Any]) -> Manifest:
    """Write the manifest of a full draft, and rename it into place. Raises OSError."""
    body = {"format": FORMAT, "step": step, "files": _plain(records), "extra": dict(extra)}
    manifest = Manifest(step, dict(records), dict(extra), _digest(body))
    write_file(folder / MANIFEST, [_encode({**body, "digest": manifest.digest})])
    fsync_directory(folder)
    _install(folder, folder.parent / step_name(step))
    return manifest


def verify(path: Path) -> Manifest:
    """Read and hash everything under `path`; raises CheckpointError naming the first thing that is wrong."""
    manifest = read_manifest(path)
    with ThreadPoolExecutor(HASHERS) as pool:
        for problem in pool.map(lambda file: _problem(path, *file), manifest.files.items()):
            if problem:
                raise CheckpointError(problem)
    return manifest


def read_manifest(path: Path) -> Manifest:
    """What should be under `path`; the files are not looked at. Raises CheckpointError."""
    try:
        body = json.loads((path / MANIFEST).read_bytes())
        digest = body.pop("digest")
        if body["format"] not in FORMATS:
            raise CheckpointError(f"{path / MANIFEST}: format {body['format']}, this version reads {list(FORMATS)}")
        if _digest(body) != digest or step_name(body["step"]) != path.name:
            raise CheckpointError(f"{path / MANIFEST}: does not match its own digest or its directory")
        records = {name: FileRecord(**record) for name, record in body["files"].items()}
        return Manifest(body["step"], records, body["extra"], digest)
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: unreadable: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST}: unreadable: {error!r}") from error


def latest_verified(root: Path) -> Found:
    """The newest checkpoint under `root` that verifies; each newer one that did not is in `skipped`."""
    skipped: list[str] = []
    for path in steps(root):
        try:
            return Found(path, verify(path), tuple(skipped))
        except CheckpointError as error:
            skipped.append(str(error))
    return Found(None, None, tuple(skipped))


def to_go_on_from(root: Path) -> Found:
    """The same for a run that goes on. Raises UnusableCheckpoint when there are some and none verifies: to train from
    the beginning then is for people to decide.
    """
    found = latest_verified(root)
    if found.path or not found.skipped:
        return found
    more = len(found.skipped) - TOLD
    why = "; ".join(found.skipped[:TOLD]) + (f"; and {more} more" if more > 0 else "")
    raise UnusableCheckpoint(
        f"none of the {len(found.skipped)} checkpoints in {root} is whole: {why}; `midflight models verify "
        f"{root.parent}` looks again: restore their files, or start a new run, or move {root} away to train from the "
        "beginning here; nothing was changed"
    )


def named(path: Path) -> Found:
    """A checkpoint that another rank has verified; its files are not read."""
    return Found(path, read_manifest(path), ())


def sweep(root: Path) -> list[Path]:
    """Remove what a crashed save left; call at start, before anything is saved. Returns what was removed.

    A checkpoint set aside while its replacement was being renamed is put back if the replacement never came.
    """
    removed = []
    for path in sorted(root.glob(".*")) if root.is_dir() else ():
        old = _OLD.fullmatch(path.name)
        if old and path.is_dir() and not (root / old[1]).exists():
            path.rename(root / old[1])
        elif old or path.name.startswith(".tmp-"):
            _remove(path)
            removed.append(path)
    return removed


def prune(root: Path, keep: int, sealed: Path | None = None, there: Collection[str] = ()) -> list[Path]:
    """Delete checkpoints older than the newest `keep` (>= 1) that verify; returns what was deleted.

    sealed: one that was hashed while it was written a moment ago, and need not be read. there: names of those that were
    there at the start; of these a damaged one stays, for people to look at. Each goes at once, by a rename to what
    `sweep` removes: nobody ever sees half of one. What the disk does not let go (on NFS a file that is read elsewhere)
    is tried again the next time.
    """
    verified, deleted = 0, list[Path]()
    for left in root.glob(f"{PRUNED}*"):
        with suppress(OSError):
            _remove(left)
    found = steps(root)
    for path in found if len(found) > keep else ():
        if verified < keep:
            verified += path == sealed or _verifies(path)
        elif path.name not in there or _verifies(path):
            aside = root / f"{PRUNED}{path.name}-{os.getpid()}"
            with suppress(OSError):
                path.rename(aside)
                deleted.append(path)
                failpoint()
                _remove(aside)
    return deleted


def steps(root: Path) -> list[Path]:
    """Checkpoint directories under `root`, newest first, verified or not."""
    found = [path for path in root.iterdir() if _STEP.fullmatch(path.name)] if root.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def step_name(step: int) -> str:
    """Directory name of a step."""
    return f"step-{step:08d}"


def _install(temporary: Path, target: Path) -> None:
    """Rename into place; a directory of the same step is set aside first and removed last, see `sweep`."""
    aside = target.parent / f".old-{target.name}-{os.getpid()}"
    failpoint()
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
        failpoint()
    temporary.rename(target)
    failpoint()
    fsync_directory(target.parent)
    failpoint()
    shutil.rmtree(aside, ignore_errors=True)


def _remove(path: Path) -> None:
    """A folder with what is in it; anything else, as a link, alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _problem(folder: Path, name: str, record: FileRecord) -> str:
    """What is wrong with a file of a checkpoint; empty when nothing is."""
    try:
        sound = Path(name).name == name and hash_file(folder / name) == record
    except OSError as error:
        return f"{folder / name}: unreadable: {error.strerror}"
    return "" if sound else f"{folder / name}: size or BLAKE2b differs from the manifest"


def _verifies(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True


def _plain(records: Mapping[str, FileRecord]) -> dict[str, dict[str, Any]]:
    return {name: asdict(record) for name, record in records.items()}


def _encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.blake2b(_encode(body), digest_size=32).hexdigest()
