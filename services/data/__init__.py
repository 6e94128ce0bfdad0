"""Data of feature R7 as typed rows: `prompts`, `prompt_rows`, `sft_rows` and `preference_rows` read any source."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from .raw import BadRow, DataError, RawRow, Rows, each
from .readers import open_source
from .rows import (
    PreferenceRow,
    PromptRow,
    SftRow,
    parse_preference,
    parse_prompt,
    parse_sft,
)
from .stream import PromptStream
from .tasks import PREFIX, TASKS, TaskRows
from .turns import Message

__all__ = [
    "TASKS",
    "BadRow",
    "DataError",
    "Message",
    "PreferenceRow",
    "PromptRow",
    "PromptStream",
    "Rows",
    "SftRow",
    "Typed",
    "demonstrations",
    "preference_rows",
    "preferences",
    "prompt_rows",
    "prompts",
    "sft_rows",
]

Row = TypeVar("Row")


class Typed(Generic[Row]):
    """The rows of a source by number, each read and checked when it is asked for."""

    def __init__(self, source: str, kind: str, parse: Callable[[RawRow], Row | BadRow]) -> None:
        task = source.startswith(PREFIX)
        self._rows: Rows[RawRow | BadRow] = TaskRows(source, kind) if task else open_source(source)
        self._parse = parse

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int, /) -> Row | BadRow:
        row = self._rows[number]
        return row if isinstance(row, BadRow) else self._parse(row)


def prompts(source: str) -> Typed[PromptRow]:
    """The RL prompts of a source by number and, in their places, the rows refused. Millions of rows are no burden.

    Raises:
        DataError: the source as a whole cannot be read.
    """
    return Typed(source, "prompt", parse_prompt)


def prompt_rows(source: str) -> Iterator[PromptRow | BadRow]:
    """Yield what `prompts` gives, in its order. Raises DataError at once."""
    return each(prompts(source))


def demonstrations(source: str) -> Typed[SftRow]:
    """The conversations of a source to imitate, by number; otherwise as `prompts`."""
    return Typed(source, "sft", parse_sft)


def sft_rows(source: str) -> Iterator[SftRow | BadRow]:
    """Yield what `demonstrations` gives, in its order. Raises DataError at once."""
    return each(demonstrations(source))


def preferences(source: str) -> Typed[PreferenceRow]:
    """The preference pairs of a source, by number; otherwise as `prompts`."""
    return Typed(source, "preference", parse_preference)


def preference_rows(source: str) -> Iterator[PreferenceRow | BadRow]:
    """Yield what `preferences` gives, in its order. Raises DataError at once."""
    return each(preferences(source))
