"""Open the sources of feature R7: rows by number, none of them held in memory.

A source is one of

    rows.jsonl, rows.json (a list, or one object a line), rows.csv, rows.parquet, rows.arrow
    folder/                                   written by `datasets.Dataset.save_to_disk`, or with data files in it
    owner/name                                a dataset of the Hugging Face hub
    task:rev6-10?rows=4096&seed=1&noise=0.5   a built-in task (see tasks.py)

and any but a task may be written `split@source`; a folder or a hub name with several configurations `source:config`.
A row that cannot be read is a `BadRow` with its reason; a source that cannot be read raises `DataError`.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .columns import open_arrow, open_parquet
from .csv_table import open_csv
from .hub import open_hub
from .json_list import open_json
from .raw import BadRow, DataError, RawRow, Rows
from .text import open_jsonl

_SPLIT: Final = re.compile(r"([\w.:%+\-\[\]]+)@(.+)")
_CONFIG: Final = re.compile(r"(.+):([\w.\-]+)")
_NAME: Final = re.compile(r"\w[\w.\-]*(/[\w.\-]+)?")
"""A dataset of the hub."""
READERS: Final[dict[str, Callable[[str], Rows[RawRow | BadRow]]]] = {
    ".jsonl": open_jsonl,
    ".json": open_json,
    ".csv": open_csv,
    ".parquet": open_parquet,
    ".arrow": open_arrow,
}
"""File suffix -> how to open it."""


@dataclass(frozen=True, slots=True)
class Place:
    """`split@path:config`, taken apart."""

    path: str
    split: str | None = None
    config: str | None = None

    @classmethod
    def of(cls, source: str) -> "Place":
        """A path that exists as written is a path, at-signs and colons or not."""
        if os.path.exists(source):
            return cls(source)
        match = _SPLIT.fullmatch(source)
        split, path = (match[1], match[2]) if match else (None, source)
        match = None if os.path.exists(path) else _CONFIG.fullmatch(path)
        if match and (os.path.isdir(match[1]) or _NAME.fullmatch(match[1])):
            return cls(match[1], split, match[2])
        return cls(path, split)


def open_source(source: str) -> Rows[RawRow | BadRow]:
    """The rows of a file, folder or hub name.

    Raises:
        DataError: the source is missing, empty, of an unknown kind or unreadable.
    """
    place = Place.of(source)
    path, reader = place.path, READERS.get(Path(place.path).suffix)
    if os.path.isdir(path) or (reader is None and _NAME.fullmatch(path) and not os.path.exists(path)):
        rows: Rows[RawRow | BadRow] = open_hub(path, place.split, place.config)
    elif reader is None:
        known = ", ".join(READERS)
        raise DataError(f"{path}: not a readable data file - expected a file ending in {known} or a folder")
    elif place.split not in (None, "train"):
        text = f"a single file has only the split 'train', not {place.split!r} - remove '{place.split}@'"
        raise DataError(f"{source}: {text}")
    else:
        rows = _open_file(path, reader)
    if not len(rows):
        raise DataError(f"{path}: no rows in it")
    return rows


def _open_file(path: str, reader: Callable[[str], Rows[RawRow | BadRow]]) -> Rows[RawRow | BadRow]:
    try:
        return reader(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file (looked in {os.getcwd()})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
