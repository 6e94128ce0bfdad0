"""Text files by row number: one pass finds where every row begins, then a row is read when it is asked for.

The index is two numbers of 8 bytes a row. Rows are decoded one by one, so one bad byte costs one row.
"""

import json
import os
import weakref
from array import array
from collections.abc import Callable, Iterator
from typing import Final

from .raw import BadRow, RawRow, as_row

BOM: Final = b"\xef\xbb\xbf"
Span = tuple[int, int]
"""Where a row begins, in bytes, and the number that people know it by."""
Parse = Callable[[str, bytes], RawRow | BadRow]
"""A row, out of its origin and its text, which may go on to where the next row begins."""


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.80} appears twice in one object")
    return found


DECODER: Final = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_no_key_twice)
"""JSON without NaN and infinities, and without objects that name a key twice, of which one value would be lost."""


class TextRows:
    """The rows of a text file that begin where `spans` says."""

    def __init__(self, path: str, spans: Iterator[Span], parse: Parse) -> None:
        self._path, self._parse = path, parse
        self._begins, self._names = array("Q"), array("Q")
        for begin, name in spans:
            self._begins.append(begin)
            self._names.append(name)
        self._file = os.open(path, os.O_RDONLY)
        self._size = os.fstat(self._file).st_size
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, number: int, /) -> RawRow | BadRow:
        begin = self._begins[number]
        end = self._begins[number + 1] if number + 1 < len(self._begins) else self._size
        return self._parse(f"{self._path}:{self._names[number]}", os.pread(self._file, end - begin, begin))


def open_jsonl(path: str) -> TextRows:
    """One object a line; blank lines are no rows."""
    return TextRows(path, _lines(path), _parse_line)


def _lines(path: str) -> Iterator[Span]:
    begin = 0
    with open(path, "rb") as file:
        for name, line in enumerate(file, 1):
            if line.removeprefix(BOM).rstrip():
                yield begin, name
            begin += len(line)


def _parse_line(origin: str, text: bytes) -> RawRow | BadRow:
    line = text.partition(b"\n")[0].removeprefix(BOM).rstrip()
    try:
        return as_row(origin, DECODER.decode(line.decode()))
    except json.JSONDecodeError as error:
        return BadRow(origin, f"not JSON at column {error.colno}: {error.msg}")
    except UnicodeDecodeError as error:
        return BadRow(origin, f"not UTF-8 at byte {error.start + 1} of the line")
    except (ValueError, RecursionError) as error:
        return BadRow(origin, f"not JSON: {error}")
