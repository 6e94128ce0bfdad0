"""`load_topology`: files and overrides to a checked topology that knows where each value came from."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .compose import compose
from .errors import ConfigError, Origin, Path, Problem, dotted, is_secret
from .registry import Registry, gives_all
from .topology import Topology
from .tree import marks, plain
from .validate import validate

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of `midflight config show`: dotted key, value as JSON (secrets hidden), where it came from."""

    key: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked topology.

    `data` is all of it, defaults included, as JSON types with absolute paths; `parse_resolved` reads it
    back. `origins` says for every key of `data` that is not a mapping: `file:line`, `argument n` or `default`.
    """

    topology: Topology
    data: dict[str, Any]
    origins: dict[Path, str]

    @property
    def hash(self) -> str:
        """32 hex digits that stand for `data`."""
        return topology_hash(self.data)

    def origins_json(self) -> dict[str, str]:
        """The origins under dotted keys, for `origins.json`."""
        return {dotted(path): origin for path, origin in self.origins.items()}

    def rows(self) -> list[Row]:
        """Every value with its origin, in the order of the schema."""
        return [
            Row(dotted(path), '"***"' if is_secret(path) and value else json.dumps(value), self.origins[path])
            for path, value in leaves(self.data)
        ]


def load_topology(
    path: str | os.PathLike[str],
    overlays: Sequence[str | os.PathLike[str]] = (),
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
    environ: Mapping[str, str] | None = None,
    elsewhere: bool = False,
) -> Loaded:
    """Read, merge and check a topology (see `compose` for the order). Nothing is started or executed.

    Relative paths in a file are relative to that file, those in an override to the working directory.
    `registry` replaces the built-in and installed kinds. `elsewhere`: it is to run on another machine, so what it names
    (files, libraries, variables) need not be here. Raises ConfigError with every mistake found.
    """
    files = [os.fspath(file) for file in (path, *overlays)]
    env = os.environ if environ is None else environ
    tree, problems = compose(files, list(overrides), env, lambda slot, given: gives_all(slot, given, registry))
    data = plain(tree)
    assert isinstance(data, dict)
    places = marks(tree)
    if not _unreadable(problems):
        topology, wrong = validate(data, places, registry, elsewhere)
        refused = {problem.path for problem in problems if problem.path}
        problems += [problem for problem in wrong if problem.path not in refused]
        if topology is not None and not problems:
            resolved = topology.model_dump(mode="json")
            return Loaded(topology, resolved, _origins(resolved, places))
    raise ConfigError(problems)


def parse_resolved(data: Mapping[str, object], registry: Registry | None = None) -> Topology:
    """The topology of a run directory's `config.json`. Raises ConfigError."""
    topology, problems = validate(data, {(): Origin("config.json")}, registry)
    if topology is None:
        raise ConfigError(problems)
    return topology


def topology_hash(data: Mapping[str, object]) -> str:
    """blake2b-128 of the canonical JSON of a resolved topology, as 32 hex digits."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _unreadable(problems: Sequence[Problem]) -> bool:
    """Whether a file or override is not in the tree, so that checking would report what is merely absent."""
    return any(not problem.path or problem.path[0] == "extends" for problem in problems)


def _origins(data: Mapping[str, object], places: Mapping[Path, Origin]) -> dict[Path, str]:
    return {path: str(places[path]) if path in places else DEFAULT for path, _ in leaves(data)}


def leaves(value: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Every value that is not a mapping of others, with its path."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value
