"""A folder that is there whole or not at all, and never in the place of what somebody else left there."""

import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from midflight.kernel.mistake import UserMistake

from .durable import fsync_directory


def check_free(out: Path, ours: Collection[int] = ()) -> None:
    """Raises UserMistake when `out` is neither free nor an empty folder, nor one of the inodes `ours`."""
    there = out.exists() or out.is_symlink()
    if there and (not out.is_dir() or (any(out.iterdir()) and out.stat().st_ino not in ours)):
        raise UserMistake(f"{out} is there and not an empty folder: name another one, or remove it")
    above = next(one for one in Path(os.path.abspath(out)).parents if os.path.lexists(one))
    if not above.is_dir():
        raise UserMistake(f"{out} cannot be made, for {above} is not a folder: name another one")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all has been written, and is removed when not.

    Raises OSError, about `out`, when the disk refuses.
    """
    target = Path(os.path.realpath(out))  # an empty folder behind a link is replaced there, and the link stays
    beside, old = (target.with_name(f".{target.name}.{secrets.token_hex(4)}.{end}") for end in ("tmp", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        yield beside
        _settle(beside)
        if target.exists() and any(target.iterdir()):
            target.rename(old)
        beside.rename(target)
        fsync_directory(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        why = os.strerror(int(code[1])) if code else str(error)
        raise OSError(int(code[1]) if code else 0, why, str(out)) from error
    except OSError as error:
        raise OSError(error.errno or 0, error.strerror or str(error), str(out)) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)


def _settle(folder: Path) -> None:
    """Every file is on disk and as readable as any that this user makes; safetensors makes some for the user alone."""
    usual = folder / ".usual"
    usual.touch()
    mode = usual.stat().st_mode
    usual.unlink()
    for path in folder.iterdir():
        path.chmod(mode)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    fsync_directory(folder)
