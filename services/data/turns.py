"""The conversations of a row, in the forms in which people write them down, checked message by message.

A prompt is `messages`, or `prompt`; an answer is text or messages. Text stands for one message, of the user or of the
assistant. Each refusal begins with the path of the field.
"""

from collections.abc import Mapping
from typing import Final, TypedDict

Fields = Mapping[str, object]
ROLES: Final = ("system", "developer", "user", "assistant", "tool")
PROMPTS: Final = ("messages", "prompt")
ANSWERS: Final = ("response", "completion")
PAIR: Final = ("chosen", "rejected")
KEYS_SHOWN: Final = 12
SHAREGPT: Final = (
    "; `conversations` (ShareGPT) is not read: write it as `messages`, each {role, content}, where human is the role "
    "user and gpt is assistant"
)


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class Refused(Exception):
    """Why a row cannot be used; it begins with the path of the field."""


def prompted(fields: Fields) -> list[Message]:
    """Messages that leave the next turn to the model. Raises Refused."""
    return _open(*_begun(fields))


def demonstrated(fields: Fields) -> list[Message]:
    """A conversation to imitate: `messages`, or `prompt` and its `response` or `completion`. Raises Refused."""
    path, found = _begun(fields)
    if path == "messages":
        if not any(message["role"] == "assistant" for message in found):
            raise Refused("messages: no assistant message to learn from")
        return found
    name = next((one for one in ANSWERS if fields.get(one) is not None), None)
    if name is None:
        raise Refused(f"prompt: needs `response` or `completion` beside it; {_has(fields)}")
    answer = _turns(name, fields[name], "assistant")
    if answer[0]["role"] != "assistant":
        raise Refused(f"{name}[0].role: what answers `prompt` begins with the assistant's message")
    return [*_open(path, found), *answer]


def compared(fields: Fields) -> tuple[list[Message], str, str]:
    """A prompt, its better and its worse answer.

    `chosen` and `rejected` are either what follows the prompt, or both whole conversations, of which the prompt is all
    but the last message. Raises Refused.
    """
    for name in PAIR:
        if name not in fields:
            raise Refused(f"{name}: missing; {_has(fields)}")
    both = [_turns(name, fields[name], "assistant") for name in PAIR]
    follows = [turns[0]["role"] == "assistant" for turns in both]
    if follows[0] != follows[1]:
        raise Refused("rejected: one of chosen and rejected is a whole conversation, the other an answer alone")
    (*prompt, chosen), (*other, rejected) = _prompts_put_before(fields, both) if follows[0] else _whole(fields, both)
    for name, last in zip(PAIR, (chosen, rejected), strict=True):
        if last["role"] != "assistant":
            raise Refused(f"{name}: must end with the assistant's message, not with one of {last['role']}")
    if prompt != other:
        raise Refused("rejected: differs from chosen before the last message; only the last answer may differ")
    if chosen == rejected:
        raise Refused("rejected: is the same text as chosen")
    return _open("chosen", prompt), chosen["content"], rejected["content"]


def _prompts_put_before(fields: Fields, both: list[list[Message]]) -> list[list[Message]]:
    if not _prompt_names(fields):
        raise Refused(f"chosen: is an answer alone, which needs `messages` or `prompt` beside it; {_has(fields)}")
    prompt = prompted(fields)
    return [[*prompt, *turns] for turns in both]


def _whole(fields: Fields, both: list[list[Message]]) -> list[list[Message]]:
    """Whole conversations as they are: a prompt beside them may only repeat a part."""
    if _prompt_names(fields):
        path, prompt = _begun(fields)
        if not all(message in both[0] for message in prompt):
            raise Refused(f"{path}: is no part of chosen, which is a whole conversation")
    return both


def _begun(fields: Fields) -> tuple[str, list[Message]]:
    """`messages` or `prompt`, which of them, and the messages."""
    names = _prompt_names(fields)
    if not names:
        raise Refused(f"messages: missing, and there is no `prompt` either; {_has(fields)}")
    return names[0], _turns(names[0], fields[names[0]], "user" if names[0] == "prompt" else "")


def _prompt_names(fields: Fields) -> list[str]:
    return [name for name in PROMPTS if name in fields]


def _has(fields: Fields) -> str:
    """The keys of a row, so that people see what was read."""
    names = [repr(str(name)[:40])[1:-1] for name in fields]
    more = ", ..." if len(names) > KEYS_SHOWN else ""
    return f"the row has: {', '.join(names[:KEYS_SHOWN]) or 'nothing'}{more}{SHAREGPT * ('conversations' in fields)}"


def _open(path: str, messages: list[Message]) -> list[Message]:
    if messages[-1]["role"] == "assistant":
        raise Refused(f"{path}[{len(messages) - 1}].role: the last message of a prompt cannot be the assistant's")
    return messages


def _turns(path: str, value: object, role: str) -> list[Message]:
    """Messages; text is one of `role`, unless that is empty."""
    if role and isinstance(value, str):
        return [{"role": role, "content": text(path, value)}]
    if not isinstance(value, list) or not value:
        wanted = "text or a list of messages" if role else "a non-empty list of {role, content}"
        raise Refused(f"{path}: must be {wanted}, not {_named(value)}")
    return [_message(f"{path}[{i}]", item) for i, item in enumerate(value)]


def _message(path: str, value: object) -> Message:
    if not isinstance(value, dict):
        raise Refused(f"{path}: must be an object {{role, content}}, not {_named(value)}")
    for name, part in value.items():
        check_name(f"{path} key", name)
        if name not in ("role", "content") and part is not None:  # Arrow fills a missing key with null
            raise Refused(f"{path}.{name}: unknown key; a message has 'role' and 'content'")
    role = value.get("role")
    if role not in ROLES:
        raise Refused(f"{path}.role: must be one of {', '.join(ROLES)}, not {_named(role)}")
    return {"role": role, "content": text(f"{path}.content", value.get("content"))}


def text(path: str, value: object) -> str:
    """The value itself, if it is text that can be written as UTF-8. Raises Refused."""
    if not isinstance(value, str):
        raise Refused(f"{path}: must be text, not {_named(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Refused(f"{path}: character {error.start} is half of a surrogate pair") from None
    return value


def check_name(path: str, name: object) -> None:
    """Refuse a name that cannot be written as UTF-8; the reason shows it escaped. Raises Refused."""
    text(f"{path} {name!r:.80}", name)


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
