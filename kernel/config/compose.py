"""Topology files, overlays and overrides to one tree.

A topology is a left fold over layers: the files it `extends` (each after its own bases), the file itself,
each `-f` overlay (again after its bases), each `a.b=value`. Mappings merge deeply; null deletes the key;
everything else, lists included, replaces.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .errors import Origin, Path, Problem, suggest
from .shipped import shipped
from .tree import Tree, merge, plain
from .yaml_nodes import MAX_CHARS, Reader

Whole = Callable[[str, object], bool]

MAX_FILES = 64
"""Most files one topology may be made of, counting a file each time it is extended."""

MAX_DEPTH = 32
"""Most keys in the path of an override."""


def _mapping_at(tree: Tree, key: str) -> dict[str, Tree]:
    item = tree.value.get(key) if isinstance(tree.value, dict) else None
    return item.value if item and isinstance(item.value, dict) else {}


@dataclass
class Composer:
    """Folds layers into `tree`; mistakes go to `reader.problems`."""

    reader: Reader
    tree: Tree
    files: int = 0
    made: dict[str, Origin] = field(default_factory=dict)
    """Slots that overrides of single keys have made, none of which is `kind`."""

    def add_file(self, path: str) -> None:
        """Lay a file, after the files it extends, on the tree. `path` is as the user wrote it."""
        self._file(os.path.abspath(path), (), Origin(display(path)))

    def add_override(self, text: str, number: int) -> None:
        """Lay `key.path=value` on the tree; the value is YAML, and an empty one deletes the key."""
        at = Origin(f"argument {number}")
        name, equals, raw = text.partition("=")
        path = tuple(name.strip().split("."))
        if not equals or not all(path) or len(path) > MAX_DEPTH:
            return self._problem(at, (), f"{name[:60]!r}: want key.path=value")
        if raw.lstrip().startswith("#"):
            return self._problem(at, path, "'#' begins a comment - put the value in quotes")
        if not self._reachable(path, at):
            return None
        item = self.reader.read(raw, at.source, os.getcwd(), (at, path))
        for key in reversed(path):
            item = Tree({key: item}, at)
        self._note_slot(path, at)
        self._lay(item)
        return None

    def _note_slot(self, path: tuple[str, ...], at: Origin) -> None:
        if len(path) < 2 or path[0] != "services":
            return
        if len(path) == 2 or path[2] == "kind":
            self.made.pop(path[1], None)
        elif path[1] not in _mapping_at(self.tree, "services"):
            self.made[path[1]] = at

    def unmake(self, whole: Whole) -> None:
        """Refuse the slots of `made` that are not whole: whoever wrote them took this topology for another one."""
        services = _mapping_at(self.tree, "services")
        kept = {slot: item for slot, item in services.items() if slot not in self.made or whole(slot, plain(item))}
        for slot in services.keys() - kept.keys():
            names = ", ".join(sorted(services.keys() - self.made.keys())) or "none"
            text = f"this topology has no service {slot!r}; it has {names}{suggest(slot, kept)}"
            self._problem(self.made[slot], ("services", slot), text)
        if len(kept) < len(services) and isinstance(self.tree.value, dict):
            here = Tree({**kept}, self.tree.value["services"].at)
            self.tree = Tree({**self.tree.value, "services": here}, self.tree.at)

    def _reachable(self, path: tuple[str, ...], at: Origin) -> bool:
        """Whether nothing on the way to `path` is a list or a scalar."""
        here = self.tree
        for i, key in enumerate(path):
            if isinstance(here.value, list):
                self._problem(at, path[:i], "is a list and has no keys - give the whole list")
            elif not isinstance(here.value, dict):
                self._problem(at, path[:i], f"is not a mapping, so it has no key {key!r}")
            elif key in here.value:
                here = here.value[key]
                continue
            else:
                return True
            return False
        return True

    def _file(self, path: str, open_files: tuple[str, ...], at: Origin) -> None:
        self.files += 1
        if self.files > MAX_FILES:
            if self.files == MAX_FILES + 1:
                self._problem(at, ("extends",), f"more than {MAX_FILES} files")
            return
        real, name = os.path.realpath(path), display(path)
        if real in open_files:
            chain = [*open_files[open_files.index(real) :], real]
            return self._problem(at, ("extends",), "cycle: " + " -> ".join(display(f) for f in chain))
        text = self._text(path, at, name)
        if text is None:
            return
        layer = self.reader.read(text, name, os.path.dirname(path))
        if layer.value is None:
            layer = Tree({}, layer.at)
        if not isinstance(layer.value, dict):
            return self._problem(layer.at, (), "want a mapping of keys at the top")
        own = dict(layer.value)
        bases = own.pop("extends", None)
        for base in self._bases(bases):
            self._file(_base(os.path.dirname(path), str(base.value)), (*open_files, real), base.at)
        self._lay(Tree(own, layer.at))

    def _lay(self, layer: Tree) -> None:
        """Merge a layer; a deleted slot must have been there, since `kl:` alone looks like an empty service."""
        known = _mapping_at(self.tree, "services")
        for slot, item in _mapping_at(layer, "services").items():
            if item.value is None and slot not in known and not self._told(slot):
                hint = suggest(slot, known) or " - write {} for a default service"
                self._problem(item.at, ("services", slot), f"null deletes a slot, and there is none{hint}")
        self.tree = merge(self.tree, layer)

    def _told(self, slot: str) -> bool:
        """Whether the slot is null because its value was refused."""
        return any(problem.path[:2] == ("services", slot) for problem in self.reader.problems)

    def _bases(self, tree: Tree | None) -> list[Tree]:
        if tree is None or tree.value is None:
            return []
        items = tree.value if isinstance(tree.value, list) else [tree]
        if all(isinstance(item.value, str) and item.value for item in items):
            return [Tree(os.path.expanduser(str(item.value)), item.at) for item in items]
        self._problem(tree.at, ("extends",), "want a file name or a list of file names")
        return []

    def _text(self, path: str, at: Origin, name: str) -> str | None:
        """The file's text, or None and a problem."""
        key: Path = ("extends",) if at.line else ()
        try:
            if os.path.exists(path) and not os.path.isfile(path):
                raise OSError(0, "not a regular file")
            with open(path, "rb") as file:
                return file.read(4 * MAX_CHARS + 1).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self._problem(at, key, f"{name!r} is not UTF-8 text (byte {error.start})")
        except OSError as error:
            self._problem(at, key, f"cannot read {name!r}: {error.strerror}{_nearest(path)}")
        return None

    def _problem(self, at: Origin, path: Path, text: str) -> None:
        self.reader.problems.append(Problem(at, path, text))


def compose(
    files: list[str], overrides: list[str], environ: Mapping[str, str], whole: Whole = lambda slot, given: False
) -> tuple[Tree, list[Problem]]:
    """The tree of a topology file, its overlays and overrides, and the mistakes found on the way.

    `whole`: whether a slot that only overrides know is one, with what they give it.
    """
    reader = Reader(environ)
    composer = Composer(reader, Tree({}, Origin(display(files[0]))))
    for path in files:
        composer.add_file(path)
    for number, text in enumerate(overrides, 1):
        composer.add_override(text, number)
    composer.unmake(whole)
    return composer.tree, reader.problems


def display(path: str) -> str:
    """A path as messages show it: relative when it lies in the working directory."""
    full, here = os.path.abspath(path), os.getcwd()
    return os.path.relpath(full, here) if f"{full}/".startswith(f"{here.rstrip('/')}/") else full


def _base(folder: str, name: str) -> str:
    """The file that `extends` names: relative to its own, or one that comes with the package, by its bare name."""
    path = os.path.join(folder, name)
    return path if os.path.exists(path) else shipped().get(name, path)


def _nearest(path: str) -> str:
    """A suggestion when a missing file has a neighbour of almost the same name."""
    folder, name = os.path.split(path)
    if os.path.exists(path) or not os.path.isdir(folder):
        return ""
    return suggest(name, [entry for entry in os.listdir(folder) if entry.endswith((".yaml", ".yml"))])
