"""Typed rows: what SFT, RL prompts and preference training need, checked field by field.

A row that does not fit is refused: `parse_*` returns a `BadRow` whose reason begins with the path of the field, for
example `messages[1].content: must be text, not a number`. Nothing is repaired and nothing is dropped silently.
Other fields than those named are ignored, or kept where that is said.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from .raw import BadRow, RawRow
from .turns import Message, Refused, check_name, compared, demonstrated, prompted, text

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class SftRow:
    """A conversation to imitate; its assistant messages (at least one) are the targets."""

    origin: str
    messages: list[Message]


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt for RL. `answer` is any JSON value and goes to `reward_fn`; `extra` holds the row's other fields."""

    origin: str
    messages: list[Message]
    answer: object
    extra: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """A prompt with a better and a worse response, for reward models and DPO."""

    origin: str
    messages: list[Message]
    chosen: str
    rejected: str


def parse_sft(row: RawRow) -> SftRow | BadRow:
    """Take `messages`, or `prompt` and `response` or `completion`."""
    return _parse(row, lambda row: SftRow(row.origin, demonstrated(row.fields)))


def parse_prompt(row: RawRow) -> PromptRow | BadRow:
    """Take `messages` (or `prompt`) and `answer`, which may be null; other fields are kept in `extra`."""
    return _parse(row, _prompt)


def parse_preference(row: RawRow) -> PreferenceRow | BadRow:
    """Take `chosen` and `rejected` with `messages` (or `prompt`), or as whole conversations."""
    return _parse(row, lambda row: PreferenceRow(row.origin, *compared(row.fields)))


def _parse(row: RawRow, build: Callable[[RawRow], Row]) -> Row | BadRow:
    try:
        return build(row)
    except Refused as refusal:
        return BadRow(row.origin, str(refusal))
    except RecursionError:
        return BadRow(row.origin, "its values are nested too deeply")


def _prompt(row: RawRow) -> PromptRow:
    messages = prompted(row.fields)
    if "answer" not in row.fields:
        raise Refused("answer: missing - reward_fn(messages, answer) gets it; write null if it needs none")
    used = ("messages" if "messages" in row.fields else "prompt", "answer")
    extra = {name: value for name, value in row.fields.items() if name not in used}
    _check_json("answer", row.fields["answer"])
    for name, value in extra.items():
        check_name("the name of a field", name)
        _check_json(name, value)
    return PromptRow(row.origin, messages, row.fields["answer"], extra)


def _check_json(path: str, value: object) -> None:
    """Refuse what a message cannot carry: only JSON values, finite numbers and 64-bit integers travel."""
    if isinstance(value, str):
        text(path, value)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_json(f"{path}[{i}]", item)
    elif isinstance(value, dict):
        for name, item in value.items():
            check_name(f"{path} key", name)
            _check_json(f"{path}.{name}", item)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise Refused(f"{path}: {value} is not a finite number")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise Refused(f"{path}: the integer does not fit in 64 bits - write it as text")
    elif value is not None:
        raise Refused(f"{path}: a {type(value).__name__} is not a JSON value - convert it to text")
