"""Typed rows: what SFT, RL prompts and preference training need, checked field by field.

A row that does not fit is refused: `parse_*` returns a `BadRow` whose reason begins with the path of the field, for
example `messages[1].content: must be text, not a number`. Nothing is repaired and nothing is dropped silently.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypedDict, TypeVar

from .raw import BadRow, RawRow

ROLES = ("system", "developer", "user", "assistant", "tool")
Row = TypeVar("Row")


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


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


class _Refused(Exception):
    """Carries the reason of a refusal up to `_parse`."""


def parse_sft(row: RawRow) -> SftRow | BadRow:
    """Take `messages`, or `prompt` and `response` as shorthand for two of them; other fields are ignored."""
    return _parse(row, _sft)


def parse_prompt(row: RawRow) -> PromptRow | BadRow:
    """Take `messages` (or `prompt`) and `answer`, which may be null; other fields are kept in `extra`."""
    return _parse(row, _prompt)


def parse_preference(row: RawRow) -> PreferenceRow | BadRow:
    """Take `messages` (or `prompt`), `chosen` and `rejected`; other fields are ignored."""
    return _parse(row, _preference)


def _parse(row: RawRow, build: Callable[[RawRow], Row]) -> Row | BadRow:
    try:
        return build(row)
    except _Refused as refusal:
        return BadRow(row.origin, str(refusal))
    except RecursionError:
        return BadRow(row.origin, "its values are nested too deeply")


def _sft(row: RawRow) -> SftRow:
    messages = _messages(row.fields)
    if "messages" not in row.fields and "response" in row.fields:
        messages.append({"role": "assistant", "content": _text("response", row.fields["response"])})
    if not any(message["role"] == "assistant" for message in messages):
        raise _Refused("messages: no assistant message to learn from")
    return SftRow(row.origin, messages)


def _prompt(row: RawRow) -> PromptRow:
    messages = _open_prompt(row.fields)
    if "answer" not in row.fields:
        raise _Refused("answer: missing - reward_fn(messages, answer) gets it; write null if it needs none")
    used = ("messages" if "messages" in row.fields else "prompt", "answer")
    extra = {name: value for name, value in row.fields.items() if name not in used}
    _check_json("answer", row.fields["answer"])
    for name, value in extra.items():
        _check_name("the name of a field", name)
        _check_json(name, value)
    return PromptRow(row.origin, messages, row.fields["answer"], extra)


def _preference(row: RawRow) -> PreferenceRow:
    messages = _open_prompt(row.fields)
    chosen, rejected = (_text(name, row.fields.get(name)) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise _Refused("rejected: is the same text as chosen")
    return PreferenceRow(row.origin, messages, chosen, rejected)


def _open_prompt(fields: Mapping[str, object]) -> list[Message]:
    """Messages that leave the next turn to the model."""
    messages = _messages(fields)
    if messages[-1]["role"] == "assistant":
        raise _Refused(f"messages[{len(messages) - 1}].role: the last message of a prompt cannot be the assistant's")
    return messages


def _messages(fields: Mapping[str, object]) -> list[Message]:
    if "messages" not in fields:
        if "prompt" not in fields:
            raise _Refused("messages: missing (and there is no 'prompt' either)")
        return [{"role": "user", "content": _text("prompt", fields["prompt"])}]
    value = fields["messages"]
    if not isinstance(value, list) or not value:
        raise _Refused(f"messages: must be a non-empty list of {{role, content}}, not {_named(value)}")
    return [_message(f"messages[{i}]", item) for i, item in enumerate(value)]


def _message(path: str, value: object) -> Message:
    if not isinstance(value, dict):
        raise _Refused(f"{path}: must be an object {{role, content}}, not {_named(value)}")
    for name, part in value.items():
        _check_name(f"{path} key", name)
        if name not in ("role", "content") and part is not None:  # Arrow fills a missing key with null
            raise _Refused(f"{path}.{name}: unknown key; a message has 'role' and 'content'")
    role = value.get("role")
    if role not in ROLES:
        raise _Refused(f"{path}.role: must be one of {', '.join(ROLES)}, not {_named(role)}")
    return {"role": role, "content": _text(f"{path}.content", value.get("content"))}


def _text(path: str, value: object) -> str:
    if not isinstance(value, str):
        raise _Refused(f"{path}: must be text, not {_named(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Refused(f"{path}: character {error.start} is half of a surrogate pair") from None
    return value


def _check_name(path: str, name: object) -> None:
    """Refuse a name that cannot be written as UTF-8; the reason shows it escaped."""
    _text(f"{path} {name!r:.80}", name)


def _check_json(path: str, value: object) -> None:
    """Refuse what a message cannot carry: only JSON values, finite numbers and 64-bit integers travel."""
    if isinstance(value, str):
        _text(path, value)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_json(f"{path}[{i}]", item)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_name(f"{path} key", name)
            _check_json(f"{path}.{name}", item)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _Refused(f"{path}: {value} is not a finite number")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise _Refused(f"{path}: the integer does not fit in 64 bits - write it as text")
    elif value is not None:
        raise _Refused(f"{path}: a {type(value).__name__} is not a JSON value - convert it to text")


def _named(value: object) -> str:
    """Name a wrong value in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, bool | int | float):
        return f"the number {value}" if not isinstance(value, bool) else str(value).lower()
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"
