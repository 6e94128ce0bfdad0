"""The checkpoints of a run as people look at them: which there are, what each holds, whether its bytes are right."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midflight.kernel.mistake import UserMistake

from .checkpoint import MANIFEST, CheckpointError, steps, verify

NEWEST = "newest"
ROWS = "rows"
"""Stage of a trainer that has but one, on rows of data."""


class NoSuchCheckpoint(UserMistake):
    """None is called so; the message names those that are there."""


@dataclass(frozen=True, slots=True)
class Look:
    """One checkpoint. What its manifest does not tell, because it cannot be read, is None.

    stage: `sft` or `rl` of a learner, or `rows`. step: of that stage. version: the policy version that its weights were
    published as; None where nothing was published, as in the warm start. saved_s: wall clock, seconds. size: bytes on
    disk. wrong: what does not verify; None when it was not looked at, empty when every byte is as it was written.
    """

    path: Path
    stage: str | None
    step: int | None
    version: int | None
    saved_s: float
    size: int
    digest: str | None
    wrong: str | None


def look(path: Path, whole: bool = True) -> Look | None:
    """Read a checkpoint's manifest and, if `whole`, hash all of it. None when the run deleted it meanwhile."""
    wrong = _wrong(path) if whole else None
    files = list(_files(path))
    body = _manifest(path)
    extra, digest = body.get("extra", {}), body.get("digest")
    stage = extra.get("stage")
    step = extra.get("sft_done" if stage == "sft" else "step", body.get("step"))
    size = sum(one.st_size for one in files)
    try:  # last: whatever was found wrong may have been the deletion
        saved = max((one.st_mtime for one in files), default=path.lstat().st_mtime)
    except FileNotFoundError:
        return None
    digest = digest if isinstance(digest, str) else None
    return Look(path, stage, step, extra.get("version"), saved, size, digest, wrong)


def looks(root: Path, whole: bool = True) -> list[Look]:
    """All under `root`, newest first."""
    return [found for path in steps(root) if (found := look(path, whole)) is not None]


def find(root: Path, wanted: str = NEWEST) -> Path:
    """The newest checkpoint, the one of a step (a learner's: of RL), or the one of a name such as `step-00000420`.

    Raises NoSuchCheckpoint.
    """
    found = looks(root, whole=False)
    for one in found:
        if wanted in (NEWEST, one.path.name) or (one.stage in ("rl", ROWS) and wanted == str(one.step)):
            return one.path
    there = ", ".join(_called(one) for one in found) or "none"
    raise NoSuchCheckpoint(f"{root}: no checkpoint {wanted!r}; there are: {there}")


def _called(one: Look) -> str:
    return f"{one.step} ({one.path.name})" if one.stage in ("rl", ROWS) else one.path.name


def _files(path: Path) -> Iterator[os.stat_result]:
    """Of those that can be looked at; what cannot is `verify`'s to tell."""
    with suppress(OSError):
        for one in path.iterdir():
            with suppress(OSError):
                yield one.stat()


def _wrong(path: Path) -> str:
    try:
        verify(path)
    except CheckpointError as error:
        return str(error)
    return ""


def _manifest(path: Path) -> dict[str, Any]:
    """What the manifest says, right or not."""
    try:
        body = json.loads((path / MANIFEST).read_bytes())
        return body if isinstance(body, dict) and isinstance(body.get("extra"), dict) else {}
    except (OSError, ValueError):
        return {}
