"""One slot's configuration, for a swap or an attached controller: found, merged and checked as a topology is."""

import importlib.metadata
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from midflight.kernel.spec import ServiceSpec

from .compose import Composer, display
from .errors import ConfigError, Origin, Problem
from .registry import KindError, service_class
from .tree import Tree, marks, plain
from .validate import validate
from .yaml_nodes import Reader

TOPOLOGY = "topology"
"""Names what the slot was in the topology that the run was started with."""
GROUP = "midflight.controllers"
"""Entry points of controllers: name = value `module:ConfigClass`."""


@dataclass(frozen=True, slots=True)
class Part:
    """A slot's checked configuration, and the folders its code is found in."""

    spec: ServiceSpec
    data: dict[str, Any]
    python_path: tuple[str, ...]

    @property
    def text(self) -> str:
        """The configuration as JSON."""
        return json.dumps(self.data)


def load_part(
    slot: str,
    what: str,
    overrides: Sequence[str],
    topology: Mapping[str, Any],
    running: Mapping[str, Any] | None = None,
) -> Part:
    """Read and check what is to run in `slot` of a run whose resolved topology is given.

    `what`: a YAML file, a Python file, `module:ConfigClass`, an entry point of `midflight.controllers`, a kind, or
    `topology`, which is what the slot was at the start.
    `running`: what runs there now: one of the same kind changes only what it names, and the whole topology is checked
    with it in the slot. None: a controller that comes from outside, which is checked by itself. Raises ConfigError.
    """
    tree, folders, problems = _written(what, overrides, running, topology["services"].get(slot))
    for folder in folders:
        if folder not in sys.path:
            sys.path.append(folder)
    own = plain(tree)
    assert isinstance(own, dict)
    part = {**running, **own} if running is not None and own.get("kind", running["kind"]) == running["kind"] else own
    under = ("services", slot)
    if running is not None and (why := _other_nature(part.get("kind"), running["kind"])):
        raise ConfigError([Problem(tree.at, under, why)])
    places = {(*under, *path): at for path, at in marks(tree).items()} | {(): Origin("config.json"), under: tree.at}
    services = {slot: part} if running is None else {**topology["services"], slot: part}
    checked, wrong = validate({**topology, "services": services}, places, None)
    problems = problems + [problem for problem in wrong if problem.path not in {one.path for one in problems}]
    if checked is None or problems:
        raise ConfigError(problems)
    spec = checked.services[slot]
    return Part(spec, spec.model_dump(mode="json"), folders)


def _other_nature(new: object, old: str) -> str:
    """Why one kind cannot take another's place, or nothing: controllers take each other's, others their part's."""
    try:
        natures = [_nature(str(kind)) for kind in (new, old)]
    except KindError:  # told with its place by the check of the whole
        return ""
    return "" if natures[0] == natures[1] else f"{new} is {natures[0]} and cannot take the place of {natures[1]}"


def _nature(kind: str) -> str:
    cls = service_class(kind)
    return "a controller" if hasattr(cls, "steers") else cls.plays or kind


def _written(
    what: str, overrides: Sequence[str], running: Mapping[str, Any] | None, first: Mapping[str, Any] | None
) -> tuple[Tree, tuple[str, ...], list[Problem]]:
    """What the user wrote; the folders to import from; and the mistakes in it. `first`: the slot in the topology."""
    path, reader = Path(what), Reader(os.environ)
    at = Origin(display(what) if path.suffix else what)
    composer = Composer(reader, Tree({}, at))
    folders: tuple[str, ...] = ()
    if path.suffix in (".yaml", ".yml"):
        composer.add_file(what)
        folders = (str(path.resolve().parent),)
    else:
        if path.suffix == ".py":
            folders = (str(path.resolve().parent),)
        elif ":" in what and Path(what.partition(":")[0].partition(".")[0] + ".py").is_file():
            folders = (os.getcwd(),)
            sys.path += [folder for folder in folders if folder not in sys.path]
        if what == TOPOLOGY and running is not None and first is not None:
            composer.tree = _tree(first, at)
        else:
            composer.tree = Tree({"kind": Tree(_kind(path, what, at), at)}, at)
    for number, text in enumerate(overrides, 1):
        composer.add_override(text, number)
    return composer.tree, folders, reader.problems


def _tree(value: Any, at: Origin) -> Tree:
    """Plain values as if they were written at one place."""
    if isinstance(value, dict):
        return Tree({key: _tree(item, at) for key, item in value.items()}, at)
    return Tree([_tree(item, at) for item in value] if isinstance(value, list) else value, at)


def _kind(path: Path, what: str, at: Origin) -> str:
    if path.suffix == ".py":
        return _defined(path, at)
    if ":" in what:
        return what
    outside = {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}
    if what in outside:
        return outside[what]
    try:
        service_class(what)
    except KindError as error:
        text = f"no file, no module:Class, no entry point of {GROUP}, and no kind: {error}"
        raise ConfigError([Problem(at, (), text)]) from error
    return what


def _defined(path: Path, at: Origin) -> str:
    """`stem:Class` of the one configuration class that a Python file defines."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
        module = import_module(path.stem)
    except Exception as error:
        raise ConfigError([Problem(at, (), f"cannot be imported: {type(error).__name__}: {error}")]) from error
    if Path(getattr(module, "__file__", None) or "").resolve() != path.resolve():
        text = f"a module named {path.stem!r} is there already ({module.__file__}): rename the file"
        raise ConfigError([Problem(at, (), text)])
    found = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, ServiceSpec) and value.__module__ == path.stem
    ]
    if len(found) != 1:
        listed = ", ".join(found) or "none"
        text = f"want one configuration class, a subclass of ControllerSpec; found {listed}"
        raise ConfigError([Problem(at, (), text)])
    return f"{path.stem}:{found[0]}"
