"""Read the sources of feature R7 into raw rows that still know where they came from.

A source is one of

    rows.jsonl, rows.json (a list, or one object a line), rows.csv, rows.parquet, rows.arrow
    folder/                                   written by `datasets.Dataset.save_to_disk`
    owner/name                                a dataset of the Hugging Face hub
    task:rev6-10?rows=4096&seed=1&noise=0.5   a built-in task (see tasks.py)

and any but a task may be written `split@source`. A row that cannot be read is yielded as a `BadRow` with its reason;
a source that cannot be read raises `DataError`.
"""

import csv
import importlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

from midflight.kernel.mistake import UserMistake

_SPLIT = re.compile(r"([\w.:%+\-\[\]]+)@(.+)")
_LONGEST_CELL = 64 << 20  # bytes; the csv module's own 128 KiB is less than one long conversation


class DataError(UserMistake):
    """A source as a whole cannot be read; the text says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row refused: `origin` is `file:row`, `reason` names the field."""

    origin: str
    reason: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as its file gives it: `origin` is `file:row`, counted from 1 (the line for jsonl and csv)."""

    origin: str
    fields: dict[str, object]


def read_source(source: str) -> Iterator[RawRow | BadRow]:
    """Yield the rows of a file, `datasets` folder or hub name, in their order.

    Raises:
        DataError: the source is missing, empty, of an unknown kind or unreadable.
    """
    path, split = _split_of(source)
    if os.path.isdir(path):
        yield from _from_datasets(path, split, on_disk=True)
        return
    reader = READERS.get(Path(path).suffix)
    if reader is None and (os.path.exists(path) or path.startswith((".", "/", "~"))):
        known = ", ".join(READERS)
        raise DataError(f"{path}: not a readable data file - expected a file ending in {known} or a folder")
    if reader is None:
        yield from _from_datasets(path, split, on_disk=False)
        return
    if split not in (None, "train"):
        raise DataError(f"{source}: a single file has only the split 'train', not {split!r} - remove '{split}@'")
    empty = True
    try:
        for row in reader(path):
            empty = False
            yield row
    except FileNotFoundError:
        raise DataError(f"{path}: no such file (looked in {os.getcwd()})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if empty:
        raise DataError(f"{path}: no rows in it")


def _split_of(source: str) -> tuple[str, str | None]:
    """Take `split@path` apart; a path that exists as written is a path, at-sign or not."""
    match = None if os.path.exists(source) else _SPLIT.fullmatch(source)
    return (match[2], match[1]) if match else (source, None)


def _as_row(origin: str, value: object) -> RawRow | BadRow:
    if isinstance(value, dict):
        return RawRow(origin, value)
    return BadRow(origin, f"a row must be an object with named fields, not {type(value).__name__}")


def _read_jsonl(path: str) -> Iterator[RawRow | BadRow]:
    """One object a line; blank lines are no rows. Lines are decoded one by one, so one bad byte costs one row."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            line = line.rstrip()
            if not line:
                continue
            origin = f"{path}:{number}"
            try:
                yield _as_row(origin, json.loads(line.decode(), parse_constant=_no_constant))
            except json.JSONDecodeError as error:
                yield BadRow(origin, f"not JSON at column {error.colno}: {error.msg}")
            except UnicodeDecodeError as error:
                yield BadRow(origin, f"not UTF-8 at byte {error.start + 1} of the line")
            except (ValueError, RecursionError) as error:
                yield BadRow(origin, f"not JSON: {error}")


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _read_json(path: str) -> Iterator[RawRow | BadRow]:
    """A list of objects, or (when the file does not begin with a bracket) one object a line."""
    with open(path, "rb") as file:
        text = file.read().removeprefix(b"\xef\xbb\xbf")
    if not text.lstrip().startswith(b"["):
        yield from _read_jsonl(path)
        return
    try:
        rows = json.loads(text.decode(), parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    for number, value in enumerate(rows, 1):
        yield _as_row(f"{path}:{number}", value)


def _read_csv(path: str) -> Iterator[RawRow | BadRow]:
    """A header and rows of text; a cell in the column `messages` holds JSON. The row number is its first line."""
    csv.field_size_limit(_LONGEST_CELL)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        table = csv.reader(file, strict=True)
        header = next(table, [])
        if len(set(header)) < len(header):
            raise DataError(f"{path}:1: a column name appears twice in {header}")
        while True:
            origin = f"{path}:{table.line_num + 1}"
            try:
                cells = next(table)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(origin, f"not CSV: {error}")
                continue
            if cells:
                yield _csv_row(origin, header, cells)


def _csv_row(origin: str, header: list[str], cells: list[str]) -> RawRow | BadRow:
    if len(cells) != len(header):
        return BadRow(origin, f"{len(cells)} cells where the header has {len(header)} columns")
    fields: dict[str, object] = dict(zip(header, cells, strict=True))
    for name, cell in zip(header, cells, strict=True):
        if any("\udc80" <= letter <= "\udcff" for letter in cell):
            return BadRow(origin, f"{name}: not UTF-8")
        if name == "messages":
            try:
                fields[name] = json.loads(cell, parse_constant=_no_constant)
            except (ValueError, RecursionError) as error:
                return BadRow(origin, f"messages: a CSV cell of messages must be JSON: {error}")
    return RawRow(origin, fields)


def _read_parquet(path: str) -> Iterator[RawRow | BadRow]:
    """Parquet, a row group at a time."""
    arrow, parquet = _extra("pyarrow", path), _extra("pyarrow.parquet", path)
    try:
        with parquet.ParquetFile(path) as file:
            yield from _batches(path, file.iter_batches())
    except arrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error


def _read_arrow(path: str) -> Iterator[RawRow | BadRow]:
    """Arrow IPC, both the file format and the stream format that `datasets` writes."""
    arrow, ipc = _extra("pyarrow", path), _extra("pyarrow.ipc", path)
    try:
        with open(path, "rb") as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            reader = ipc.open_file(file) if is_file else ipc.open_stream(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
            yield from _batches(path, batches)
    except arrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Arrow file: {error}") from error


class _Batch(Protocol):
    """What this module uses of `pyarrow.RecordBatch`."""

    def to_pylist(self) -> list[dict[str, object]]:
        """The rows."""
        ...


def _batches(path: str, batches: Iterable[_Batch]) -> Iterator[RawRow]:
    number = 0
    for batch in batches:
        for fields in batch.to_pylist():
            number += 1
            yield RawRow(f"{path}:{number}", fields)


def _from_datasets(path: str, split: str | None, *, on_disk: bool) -> Iterator[RawRow]:
    """Rows of a saved folder or a hub dataset, by the `datasets` library."""
    datasets = _extra("datasets", path)
    try:
        data = datasets.load_from_disk(path) if on_disk else datasets.load_dataset(path, split=split or "train")
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: `datasets` cannot load it: {error}") from error
    if isinstance(data, dict):
        name = split or "train"
        if name not in data:
            raise DataError(f"{path}: no split {name!r}; it has {', '.join(data)} - write 'SPLIT@{path}'")
        data = data[name]
    for number, fields in enumerate(data, 1):
        yield RawRow(f"{path}:{number}", fields)


def _extra(module: str, path: str) -> ModuleType:
    """Import an optional library, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        root = module.partition(".")[0]
        raise DataError(f'{path}: reading it needs {root} - pip install "midflight[data]"') from None


READERS: dict[str, Callable[[str], Iterator[RawRow | BadRow]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
"""File suffix -> reader."""
