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

    `what`: a YAML file, a Python file, `module:ConfigClass`, an entry point of `midflight.controllers`, or a kind.
    `running`: what runs there now: one of the same kind changes only what it names, and the whole topology is checked
    with it in the slot. None: a controller that comes from outside, which is checked by itself. Raises ConfigError.
    """
    tree, folders, problems = _written(what, overrides)
    for folder in folders:
        if folder not in sys.path:
            sys.path.append(folder)
    own = plain(tree)
    assert isinstance(own, dict)
    same = running is not None and own.get("kind", running["kind"]) == running["kind"] and Path(what).suffix != ".py"
    part = {**running, **own} if running is not None and same else own
    under = ("services", slot)
    places = {(*under, *path): at for path, at in marks(tree).items()} | {(): Origin("config.json"), under: tree.at}
    services = {slot: part} if running is None else {**topology["services"], slot: part}
    checked, wrong = validate({**topology, "services": services}, places, None)
    problems = problems + [problem for problem in wrong if problem.path not in {one.path for one in problems}]
    if checked is None or problems:
        raise ConfigError(problems)
    spec = checked.services[slot]
    return Part(spec, spec.model_dump(mode="json"), folders)


def _written(what: str, overrides: Sequence[str]) -> tuple[Tree, tuple[str, ...], list[Problem]]:
    """What the user wrote; the folders to import from; and the mistakes in it."""
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
        composer.tree = Tree({"kind": Tree(_kind(path, what, at), at)}, at)
    for number, text in enumerate(overrides, 1):
        composer.add_override(text, number)
    return composer.tree, folders, reader.problems


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
