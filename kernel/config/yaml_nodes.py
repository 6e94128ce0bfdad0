"""YAML text to a tree of values that know where they were written.

YAML 1.2 core types over PyYAML's node graph: `1e-6` is a number, `no` is a string, keys are always strings.
Refused, each with its line: duplicate keys, tags outside the core schema (`!!python/object`, `!!binary`),
merge keys, numbers that are not finite or not 64-bit, NUL, aliases that expand to more than `MAX_NODES`
values or contain themselves, nesting that exhausts the parser, and text over `MAX_CHARS`.
Nothing is imported or executed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from midflight.kernel.spec import LocatedStr

from .errors import Origin, Path, Problem
from .scalars import FLOAT, INT, checked, interpolate, to_float, to_int
from .tree import Scalar, Tree, Value

MAX_CHARS = 256 * 1024
MAX_NODES = 20_000

_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """PyYAML with the scalar rules of the YAML 1.2 core schema."""

    yaml_implicit_resolvers = {}


for _name, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", rf"(?:{INT.pattern})$", list("-+0123456789")),
    ("float", rf"(?:{FLOAT.pattern}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+0123456789.")),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)


@dataclass
class Reader:
    """Reads YAML texts and gathers their `problems`, so that all of them can be told at once.

    `environ` answers `${env:NAME}`.
    """

    environ: Mapping[str, str]
    problems: list[Problem] = field(default_factory=list)

    def read(self, text: str, source: str, folder: str, key: tuple[Origin, Path] | None = None) -> Tree:
        """Parse one document named `source`; its strings remember `folder` for relative paths.

        `key` is given for the value of a command-line argument: its origin, which stands for every place
        in the text, and the path it will be put at. An empty document is null; so is a text that cannot
        be parsed, which also adds a problem.
        """
        at, path = key or (None, ())
        start = at or Origin(source, 1, 1)
        try:
            if len(text) > MAX_CHARS:
                raise _Refused(f"longer than {MAX_CHARS // 1024} KiB")
            node = _Loader(text).get_single_node()
            return _Walk(self, source, folder, at).tree(node, path, None) if node else Tree(None, start)
        except yaml.YAMLError as error:
            line, column, why = _yaml_error(error, text)
            self.problems.append(Problem(at or Origin(source, line, column), path, why))
        except RecursionError:
            self.problems.append(Problem(start, path, "nested too deeply"))
        except _Refused as error:
            self.problems.append(Problem(start, path, str(error)))
        except (ValueError, OverflowError):  # PyYAML's chr() on an escape such as "\UFFFFFFFF"
            self.problems.append(Problem(start, path, "an escape names no character"))
        return Tree(None, start)


class _Refused(Exception):
    """A document that is too large to be a topology."""


def _yaml_error(error: yaml.YAMLError, text: str) -> tuple[int, int, str]:
    """Line and column, from 1, and one line of cause."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        return line, column, f"character {error.character:#04x} is not allowed"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        why = error.problem or "not valid YAML"
        if error.context and error.context.startswith("expected"):
            why = f"{error.context}, {why}"
        return error.problem_mark.line + 1, error.problem_mark.column + 1, why
    return 1, 1, "not valid YAML"


@dataclass
class _Walk:
    """One document on its way from PyYAML nodes to a `Tree`."""

    reader: Reader
    source: str
    folder: str
    at: Origin | None
    count: int = 0
    open_nodes: set[int] = field(default_factory=set)

    def tree(self, node: yaml.Node, path: Path, key: Origin | None) -> Tree:
        """The tree of `node`; `key` is the place of its mapping key."""
        at = key or self._origin(node)
        self.count += 1
        if self.count > MAX_NODES:
            raise _Refused(f"more than {MAX_NODES} values (an alias counts each time it is used)")
        if id(node) in self.open_nodes:
            return self._fail(at, path, "an alias must not contain itself")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path, at)
        wanted = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if node.tag != _TAG + wanted:
            return self._fail(at, path, f"tag {_short(node.tag)!r} is not allowed")
        self.open_nodes.add(id(node))
        value: Value
        if isinstance(node, yaml.MappingNode):
            value = self._mapping(node, path)
        else:
            value = [self.tree(item, (*path, i), None) for i, item in enumerate(node.value)]
        self.open_nodes.discard(id(node))
        return Tree(value, at)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Tree]:
        out: dict[str, Tree] = {}
        for key_node, value_node in node.value:
            at = self._origin(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._fail(at, path, "a key must be a plain word")
                continue
            key = str(key_node.value)
            if not key or not key.isprintable():
                self._fail(at, path, "a key must be printable text")
            elif key in out:
                first = f" (first at line {out[key].at.line})" if out[key].at.line else ""
                self._fail(at, path, f"duplicate key {key!r}{first}")
            elif key == "<<":
                self._fail(at, path, "merge keys ('<<') are not YAML 1.2 - use 'extends:' or repeat the alias")
            else:
                out[key] = self.tree(value_node, (*path, key), at)
        return out

    def _scalar(self, node: yaml.ScalarNode, path: Path, at: Origin) -> Tree:
        try:
            return Tree(self._convert(node), at)
        except ValueError as error:
            return self._fail(at, path, str(error))

    def _convert(self, node: yaml.ScalarNode) -> Scalar:
        text, kind = checked(str(node.value)), node.tag.removeprefix(_TAG)
        if kind == "str":
            return LocatedStr(interpolate(text, self.reader.environ), self.folder)
        if kind == "int":
            return to_int(text)
        if kind == "float":
            return to_float(text)
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind == "null":
            return None
        raise ValueError(f"tag {_short(node.tag)!r} is not allowed")

    def _fail(self, at: Origin, path: Path, text: str) -> Tree:
        self.reader.problems.append(Problem(at, path, text))
        return Tree(None, at)

    def _origin(self, node: yaml.Node) -> Origin:
        return self.at or Origin(self.source, node.start_mark.line + 1, node.start_mark.column + 1)


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
