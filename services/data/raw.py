"""What every source gives: raw rows that know where they came from, by number, without holding them all."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from midflight.kernel.mistake import UserMistake

Item = TypeVar("Item", covariant=True)


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


class Rows(Protocol[Item]):
    """Rows by number, 0 <= number < len; a list is one too. Any order costs the same."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, number: int, /) -> Item:
        """One of them, read now. Raises OSError when its file has gone."""
        ...


def each(rows: Rows[Item]) -> Iterator[Item]:
    """All of them, in their order, one at a time."""
    return (rows[number] for number in range(len(rows)))


def as_row(origin: str, value: object) -> RawRow | BadRow:
    """A row is an object; anything else is refused."""
    if isinstance(value, dict):
        return RawRow(origin, value)
    return BadRow(origin, f"a row must be an object with named fields, not {type(value).__name__}")
