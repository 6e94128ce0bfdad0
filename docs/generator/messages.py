"""docs/messages.md: the wire, then every kind of the catalogue, one section a topic."""

import inspect
import re
import sys
from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from midflight.messages import tensors, wire
from midflight.messages.base import Bulk, Message, Part, Tensor
from midflight.messages.catalogue import TOPICS
from midflight.messages.envelope import MAJOR, MINOR, Envelope

from .markdown import NOTICE, as_json, code, fenced, prose, table
from .types import words
from .words import WORDS, unit

_ROLES = "Any|Applying|Client|Controller|Kernel|Learner|Ledger|Owner|Reward|Rollout|Service|Subscriber|Worker"


def page() -> str:
    """The whole page."""
    parts = [NOTICE, "# Messages\n", _intro(), "## The wire\n", prose(wire.__doc__), _limits(), _envelope(), _arrays()]
    for topic, kinds in TOPICS.items():
        doc = inspect.getdoc(sys.modules[kinds[0].__module__]) or ""
        about = doc.partition(": ")[2].strip()
        parts += [f"## Topic {topic}\n", f"{about[0].upper()}{about[1:]}\n"]
        parts += [section(kind) for kind in kinds]
        parts += [_part(part) for part in own_parts(kinds)]
    return "\n".join(parts)


def section(kind: type[Message]) -> str:
    """One kind: purpose, direction, fields, buffers, example."""
    doc = inspect.getdoc(kind) or ""
    lines = [f"### `{kind.KIND}`\n", f"{doc}\n", f"Direction: {direction(doc)}.\n", fields(kind)]
    if issubclass(kind, Bulk):
        lines += ["Buffers, one column each:\n", _columns(kind)]
    return "\n".join([*lines, fenced(as_json(kind.EXAMPLE), "json")])


def direction(doc: str) -> str:
    """Who says it to whom: the words before the first colon, comma or full stop, when they name a sender."""
    head = re.split(r"[:,.]|, resent", doc, maxsplit=1)[0]
    if re.match(rf"({_ROLES})\b.* to |To ", head):
        return head[0].lower() + head[1:]
    return "in answer to a request"


def fields(model: type[BaseModel]) -> str:
    """Table of a model's fields."""
    if not model.model_fields:
        return "No fields.\n"
    properties = model.model_json_schema()["properties"]
    rows = []
    for name, info in model.model_fields.items():
        about = info.description or WORDS.get(name, "")
        optional = "" if info.is_required() else f" (default {code(as_json(info.get_default()))})"
        rows.append([code(name), words(properties[name]), unit(name), (about + optional).strip()])
    return table(["field", "type", "unit", "meaning"], rows)


def _intro() -> str:
    return (
        f"Protocol {MAJOR}.{MINOR}. Every message is a kind of the catalogue `messages/catalogue.py`, a strict "
        "pydantic model: no coercion, no unknown key, no NaN or infinity.\nA sender is `name#generation`. "
        "`post` is resent until it is acknowledged, `request` has a deadline, everything else may be lost because it "
        "is repeated (`kernel/mail.py`).\n"
    )


def _limits() -> str:
    rows = [
        ["envelope", f"{wire.MAX_ENVELOPE} bytes"],
        ["body", f"{wire.MAX_BODY} bytes"],
        ["one buffer", f"{wire.MAX_BUFFER} bytes"],
        ["buffers", str(wire.MAX_BUFFERS)],
    ]
    reject = (
        "A message of another major is answered by the one frame fixed for ever, `00` and the msgpack map "
        f'`{{"supported": "{MAJOR}"}}`. Every other refusal is counted under one of these reasons: '
        + ", ".join(f"`{reason}`" for reason in wire.REASONS)
        + ".\n"
    )
    return "\n".join([table(["part", "at most"], rows), reject])


def _envelope() -> str:
    return f"### The envelope\n\n{fields(Envelope)}"


def _arrays() -> str:
    rows = [[code(name), str(size)] for name, size in tensors.ITEM_BYTES.items()]
    sizes = table(["dtype", "bytes an item"], rows)
    return f"### Arrays\n\n{prose(tensors.__doc__)}\n{sizes}\n{_part(Tensor)}"


def _columns(kind: type[Message]) -> str:
    rows = [[code(column["name"]), code(column["dtype"])] for column in kind.EXAMPLE["tensors"]]
    return table(["column", "dtype"], rows)


def own_parts(kinds: Sequence[type[Message]]) -> Iterator[type[Part]]:
    """The typed pieces that a topic's messages are made of, in the order of its file."""
    module = kinds[0].__module__
    for value in vars(sys.modules[module]).values():
        own = inspect.isclass(value) and value.__module__ == module
        if own and issubclass(value, Part) and not issubclass(value, Message):
            yield value


def _part(part: type[Part]) -> str:
    return f"### {part.__name__}\n\n{inspect.getdoc(part)}\n\n{fields(part)}"
