"""Data of feature R7 as typed rows: `prompt_rows`, `sft_rows` and `preference_rows` read any source."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from .readers import BadRow, DataError, RawRow, read_source
from .rows import (
    Message,
    PreferenceRow,
    PromptRow,
    SftRow,
    parse_preference,
    parse_prompt,
    parse_sft,
)
from .stream import PromptStream
from .tasks import PREFIX, TASKS, read_task

__all__ = [
    "TASKS",
    "BadRow",
    "DataError",
    "Message",
    "PreferenceRow",
    "PromptRow",
    "PromptStream",
    "SftRow",
    "preference_rows",
    "prompt_rows",
    "sft_rows",
]

Row = TypeVar("Row")


def prompt_rows(source: str) -> Iterator[PromptRow | BadRow]:
    """Yield the RL prompts of a source and, in their places, the rows refused.

    Raises:
        DataError: the source as a whole cannot be read.
    """
    return _rows(source, "prompt", parse_prompt)


def sft_rows(source: str) -> Iterator[SftRow | BadRow]:
    """Yield the conversations of a source to imitate; otherwise as `prompt_rows`."""
    return _rows(source, "sft", parse_sft)


def preference_rows(source: str) -> Iterator[PreferenceRow | BadRow]:
    """Yield the preference pairs of a source; otherwise as `prompt_rows`."""
    return _rows(source, "preference", parse_preference)


def _rows(source: str, kind: str, parse: Callable[[RawRow], Row | BadRow]) -> Iterator[Row | BadRow]:
    for row in read_task(source, kind) if source.startswith(PREFIX) else read_source(source):
        yield row if isinstance(row, BadRow) else parse(row)
