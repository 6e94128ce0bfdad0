"""CSV files by row number."""

import csv
import io
from collections.abc import Iterator
from typing import Final

from .raw import BadRow, DataError, RawRow
from .text import BOM, DECODER, Span, TextRows

_LONGEST_CELL: Final = 64 << 20
"""Bytes; the csv module's own 128 KiB is less than one long conversation."""


def open_csv(path: str) -> TextRows:
    """A header and rows of text; a cell in the column `messages` holds JSON. The row number is its first line.

    Raises:
        DataError: a column name appears twice.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        header = next(csv.reader(file, strict=True), [])
    if len(set(header)) < len(header):
        raise DataError(f"{path}:1: a column name appears twice in {header}")
    return TextRows(path, _records(path), lambda origin, text: _parse_record(origin, text, header))


class _Counted:
    """The lines of a text file, counting the bytes of those that were taken."""

    def __init__(self, file: io.TextIOBase, skipped: int) -> None:
        self.bytes, self._file = skipped, file

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.bytes += len(line) if line.isascii() else len(line.encode(errors="surrogateescape"))
            yield line


def _records(path: str) -> Iterator[Span]:
    """Records that are not blank, also those that the csv module refuses."""
    with open(path, "rb") as raw:
        skipped = len(BOM) if raw.read(len(BOM)) == BOM else 0
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _Counted(file, skipped)
        table = csv.reader(iter(lines), strict=True)
        next(table, None)
        while True:
            span = lines.bytes, table.line_num + 1
            try:
                cells = next(table)
            except StopIteration:
                return
            except csv.Error:
                cells = [""]
            if cells:
                yield span


def _parse_record(origin: str, text: bytes, header: list[str]) -> RawRow | BadRow:
    words = io.StringIO(text.decode(errors="surrogateescape"), newline="")
    try:
        cells = next(csv.reader(words, strict=True))
    except csv.Error as error:
        return BadRow(origin, f"not CSV: {error}")
    if len(cells) != len(header):
        return BadRow(origin, f"{len(cells)} cells where the header has {len(header)} columns")
    fields: dict[str, object] = dict(zip(header, cells, strict=True))
    for name, cell in zip(header, cells, strict=True):
        if any("\udc80" <= letter <= "\udcff" for letter in cell):
            return BadRow(origin, f"{name}: not UTF-8")
        if name == "messages":
            try:
                fields[name] = DECODER.decode(cell)
            except (ValueError, RecursionError) as error:
                return BadRow(origin, f"messages: a CSV cell of messages must be JSON: {error}")
    return RawRow(origin, fields)
