"""Values that know where they were written, and the one law by which they are laid on each other.

Mappings merge deeply; null in a mapping deletes the key; everything else, lists included, replaces.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from .errors import Origin, Path

Scalar: TypeAlias = str | int | float | bool | None
Value: TypeAlias = "Scalar | list[Tree] | dict[str, Tree]"


@dataclass(frozen=True, slots=True)
class Tree:
    """A value and the place of its key (or, without one, of itself)."""

    value: Value
    at: Origin


def merge(base: Tree, over: Tree) -> Tree:
    """`base` with `over` laid on top. `base` holds no null in a mapping, and neither does the result."""
    if not isinstance(over.value, dict):
        return over
    out = dict(base.value) if isinstance(base.value, dict) else {}
    for key, item in over.value.items():
        if item.value is None:
            out.pop(key, None)
        else:
            out[key] = merge(out.get(key, Tree(None, item.at)), item)
    return Tree(out, over.at if over.value or not isinstance(base.value, dict) else base.at)


def plain(tree: Tree) -> object:
    """The values of a tree as dicts, lists and scalars."""
    if isinstance(tree.value, dict):
        return {key: plain(item) for key, item in tree.value.items()}
    if isinstance(tree.value, list):
        return [plain(item) for item in tree.value]
    return tree.value


def marks(tree: Tree, path: Path = ()) -> dict[Path, Origin]:
    """Where every value of a tree was written."""
    out = {path: tree.at}
    for key, item in _children(tree):
        out |= marks(item, (*path, key))
    return out


def _children(tree: Tree) -> Iterator[tuple[str | int, Tree]]:
    if isinstance(tree.value, dict):
        yield from tree.value.items()
    elif isinstance(tree.value, list):
        yield from enumerate(tree.value)
