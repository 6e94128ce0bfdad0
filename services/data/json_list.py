"""JSON files by row number: a list of objects is never read as a whole, only walked along its brackets and commas."""

import json
import re
from collections.abc import Iterator
from typing import Final

from .raw import BadRow, DataError, RawRow, as_row
from .text import BOM, DECODER, Span, TextRows, open_jsonl

_PIECE: Final = 1 << 20
_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_PLAIN: Final = rb'[^][{}"]++|' + _STRING
_FLAT: Final = rb"\{(?:%b)*+\}" % _PLAIN
_SHALLOW: Final = rb"\{(?:%b|\[(?:%b|%b)*+\]|%b)*+\}" % (_PLAIN, _PLAIN, _FLAT, _FLAT)
"""An object as rows are, at most a list of objects in it: taken at once. Any other is walked through."""
_MARK: Final = re.compile(rb'(?:[^][{},"]++|%b|%b)*+([][{},])' % (_STRING, _SHALLOW), re.DOTALL)
"""What has no meaning for the shape of the list, and the character behind it that has."""


def open_json(path: str) -> TextRows:
    """A list of objects, or (when the file does not begin with a bracket) one object a line.

    Raises:
        DataError: the list does not end, or something follows it.
    """
    with open(path, "rb") as file:
        head = file.read(_PIECE).removeprefix(BOM).lstrip()
    return TextRows(path, _elements(path), _parse_element) if head.startswith(b"[") else open_jsonl(path)


def _elements(path: str) -> Iterator[Span]:
    """The elements of a list: each begins behind the bracket or comma before it."""
    depth, name, begin, filled = 0, 1, 0, False
    for position, mark, between in _marks(path):
        if depth == 0 and name > 1:
            raise DataError(f"{path}: not JSON: something follows the list")
        filled = filled or bool(between)
        if mark in b"[{":
            depth += 1
            begin, filled = (position + 1, False) if depth == 1 else (begin, True)
        elif mark in b"]}":
            depth -= 1
        if depth == 0 or (depth == 1 and mark == b","):
            if filled or name > 1 or depth:
                yield begin, name
            name, begin, filled = name + 1, position + 1, False
    if depth or name == 1:
        raise DataError(f"{path}:{_end_of(path)}: not JSON: the list does not end")


def _marks(path: str) -> Iterator[tuple[int, bytes, bytes]]:
    """(place, bracket or comma, what is between it and the one before, stripped) outside all strings."""
    with open(path, "rb") as file:
        base, rest = 0, file.read(_PIECE)
        if rest.startswith(BOM):
            base, rest = len(BOM), rest[len(BOM) :]
        while rest:
            at = 0
            while found := _MARK.match(rest, at):
                yield base + found.start(1), found[1], rest[at : found.start(1)].strip()
                at = found.end()
            piece = file.read(_PIECE)
            if not piece:
                return
            base, rest = base + at, rest[at:] + piece


def _end_of(path: str) -> str:
    """`line:column` behind the last character."""
    lines, column = 1, 1
    with open(path, "rb") as file:
        for line in file:
            lines, column = (lines + 1, 1) if line.endswith(b"\n") else (lines, len(line.decode(errors="replace")) + 1)
    return f"{lines}:{column}"


def _parse_element(origin: str, text: bytes) -> RawRow | BadRow:
    """An element and the comma or bracket behind it."""
    try:
        value, end = DECODER.raw_decode(words := text.decode().lstrip())
    except json.JSONDecodeError as error:
        return BadRow(origin, f"not JSON at line {error.lineno}, column {error.colno} of the row: {error.msg}")
    except UnicodeDecodeError as error:
        return BadRow(origin, f"not UTF-8 at byte {error.start + 1} of the row")
    except (ValueError, RecursionError) as error:
        return BadRow(origin, f"not JSON: {error}")
    if words[end:].strip() not in (",", "]"):
        return BadRow(origin, f"not JSON: {words[end:].strip()[:20]!r} follows the row")
    return as_row(origin, value)
