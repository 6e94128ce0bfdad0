"""Arrow and Parquet by row number, from memory-mapped files whose pages are handed back as reading goes on.

A row of a Parquet file cannot be had without decoding its whole row group, often all of the file. So a Parquet file is
written once, piece by piece, as an Arrow stream into a temporary file without a name, in $TMPDIR or else /var/tmp.
The batches of a compressed Arrow stream, which nobody writes by default, are unpacked into memory.
"""

import mmap
import os
import tempfile
from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import IO, Final, Protocol

from .extra import extra
from .raw import BadRow, DataError, RawRow

PIECE_ROWS: Final = 1024
HAND_BACK: Final = 64
"""Rows read until the pages read so far leave this process; they stay in the system's cache."""


class _Batch(Protocol):
    """What this module uses of `pyarrow.RecordBatch`."""

    num_rows: int

    def validate(self, *, full: bool) -> None:
        """Raise ArrowException unless what is in it agrees with itself; `full`: all offsets and texts too."""
        ...

    def slice(self, offset: int, length: int) -> "_Batch":
        """Some of its rows."""
        ...

    def to_pylist(self) -> list[dict[str, object]]:
        """The rows."""
        ...


class ArrowRows:
    """The rows of an Arrow file, in the file format or the stream format that `datasets` writes.

    `name` is what people know the file by. Unless `ours`, a batch is checked when it is first read, for offsets that
    point outside of it would end this process; of a damaged batch every row is checked by itself, and the rows that are
    whole are used. Raises DataError when two columns have the same name, pyarrow.ArrowException when the file is not
    readable.
    """

    def __init__(self, name: str, file: IO[bytes], *, ours: bool = False) -> None:
        self._name, self._ours = name, ours
        self._whole: dict[int, bool] = {}
        """Of each batch that was read, whether all of it can be trusted."""
        self._pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        ipc, arrow = extra("pyarrow.ipc", name), extra("pyarrow", name)
        source = arrow.py_buffer(self._pages)
        self._damage: tuple[type[Exception], ...] = (ValueError, OverflowError, arrow.ArrowException)
        self._read = 0
        self._batch: Callable[[int], _Batch]
        if self._pages[:6] == b"ARROW1":
            reader = ipc.open_file(source)
            no_name_twice(name, reader.schema.names)
            self._batch = lru_cache(2)(reader.get_batch)
            sizes = [self._batch(number).num_rows for number in range(reader.num_record_batches)]
        else:
            batches: list[_Batch] = []
            reader = ipc.open_stream(source)
            no_name_twice(name, reader.schema.names)
            for batch in reader:
                batches.append(batch)
                self._hand_back()
            self._batch = batches.__getitem__
            sizes = [batch.num_rows for batch in batches]
        self._ends = list(accumulate(sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int, /) -> RawRow | BadRow:
        place = bisect_right(self._ends, number)
        before = self._ends[place - 1] if place else 0
        origin = f"{self._name}:{number + 1}"
        one = self._batch(place).slice(number - before, 1)
        try:
            if not self._is_whole(place):
                one.validate(full=True)
        except self._damage as error:
            return BadRow(origin, f"the file is damaged here: {error}")
        try:
            row: RawRow | BadRow = RawRow(origin, one.to_pylist()[0])
        except self._damage as error:  # not UTF-8, or a date that Python has no name for
            row = BadRow(origin, f"{type(error).__name__}: {error}")
        self._hand_back()
        return row

    def _is_whole(self, place: int) -> bool:
        if not self._ours and place not in self._whole:
            try:
                self._batch(place).validate(full=True)
                self._whole[place] = True
            except self._damage:
                self._whole[place] = False
            self._pages.madvise(mmap.MADV_DONTNEED)
        return self._ours or self._whole[place]

    def _hand_back(self) -> None:
        self._read += 1
        if self._read % HAND_BACK == 0:
            self._pages.madvise(mmap.MADV_DONTNEED)


def no_name_twice(path: str, names: list[str]) -> None:
    """Raise DataError when two columns have one name: a row would silently keep only one of their values."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: a column name appears twice: {', '.join(map(repr, twice))}")


def open_arrow(path: str) -> ArrowRows:
    """An Arrow IPC file.

    Raises:
        DataError: it is not one, or pyarrow is missing.
    """
    arrow = extra("pyarrow", path)
    try:
        with open(path, "rb") as file:
            return ArrowRows(path, file)
    except (arrow.ArrowException, ValueError) as error:  # an empty file cannot be mapped
        raise DataError(f"{path}: not a readable Arrow file: {error}") from error


def open_parquet(path: str) -> ArrowRows:
    """A Parquet file.

    Raises:
        DataError: it is not one, or pyarrow is missing.
    """
    arrow, parquet, ipc = (extra(name, path) for name in ("pyarrow", "pyarrow.parquet", "pyarrow.ipc"))
    folder = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108 - a file without a name cannot be guessed
    try:
        with (
            parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as source,
            tempfile.TemporaryFile(dir=folder) as copy,
        ):
            no_name_twice(path, source.schema_arrow.names)
            with ipc.new_stream(arrow.PythonFile(copy, "w"), source.schema_arrow) as writer:
                for batch in source.iter_batches(PIECE_ROWS):
                    writer.write_batch(batch)
            copy.flush()
            arrow.default_memory_pool().release_unused()
            return ArrowRows(path, copy, ours=True)
    except arrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error
