"""Which changes to a topology a run can be resumed with: all but those that give its stored samples another meaning."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .config import KindError, Loaded, service_class
from .config.errors import Path, dotted, is_hidden
from .config.load import DEFAULT, leaves
from .config.registry import part_of
from .rundir import RunDir

TOP_LEVEL = ("seed", "model")
SHOWN = 60
"""Characters of a value that are told."""


def changed(folder: RunDir, loaded: Loaded) -> str:
    """Say in what the topology is not that of the run here; empty when it can go on.

    That is its name, which service trains, and every fixed field. Writes nothing.
    """
    before = _before(folder)
    if why := _another(folder.name(), _trainers(before.get("services", {})), loaded):
        return f"{why}. Go on with the topology it began with, or start a new run without --resume in another --run-dir"
    for path in _fixed(loaded) if before else ():
        was, now = _at(before, path), _at(loaded.data, path)
        if was != now and _slot_existed(before, path):
            return (
                f"the run began with {path} = {json.dumps(was)}, and the topology now says {json.dumps(now)}: "
                "its samples would mean something else. Set it back, or start a new run without --resume"
            )
    return ""


def differences(folder: RunDir, loaded: Loaded) -> list[str]:
    """`key: before -> now` for all that the run last ran with otherwise; not defaults that it did not know yet."""
    before = _before(folder)
    was, now = dict(leaves(before)), dict(leaves(loaded.data))
    out = []
    for path in {**was, **now} if before else ():
        new = path not in was and loaded.origins.get(path) == DEFAULT
        then, current = _none(was.get(path)), _none(now.get(path))
        if not new and then != current:
            out.append(f"{dotted(path)}: {_said(path, then)} -> {_said(path, current)}")
    return out


def _another(name: str, trainers: dict[str, str], loaded: Loaded) -> str:
    """Why this is another run; empty when it is not."""
    now = _trainers(loaded.data["services"])
    if name and name != loaded.topology.run:
        return f"this is a run of {name!r}, and the topology is of {loaded.topology.run!r}"
    if trainers and trainers != now:
        return f"this run is trained by {_listed(trainers)}, and the topology says {_listed(now) or 'none'}"
    return ""


def _trainers(services: Mapping[str, Any]) -> dict[str, str]:
    """Slot -> the part it plays, of what trains the run's model."""
    found = {}
    for slot, section in services.items():
        try:
            if service_class(section["kind"]).trains:
                found[slot] = part_of(section["kind"])
        except KindError:  # of a package that is not here any more
            continue
    return found


def _listed(trainers: dict[str, str]) -> str:
    return ", ".join(slot if slot == part else f"{slot} (kind {part})" for slot, part in trainers.items())


def _before(folder: RunDir) -> Mapping[str, Any]:
    """The configuration that the run last ran with; empty when it cannot be read."""
    try:
        found = json.loads(folder.config_json.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _none(value: object) -> object:
    """A mapping without keys says no more than one that is not there."""
    return None if value == {} else value


def _said(path: Path, value: object) -> str:
    if value is None:
        return "none"
    text = "***" if is_hidden(value, path) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _fixed(loaded: Loaded) -> Iterator[str]:
    yield from TOP_LEVEL
    for slot, spec in loaded.topology.services.items():
        yield from (f"services.{slot}.{field}" for field in type(spec).fixed)


def _slot_existed(before: Mapping[str, Any], path: str) -> bool:
    """Whether the service was part of the run; a new one has stored nothing."""
    return not path.startswith("services.") or path.split(".")[1] in before.get("services", {})


def _at(data: Any, path: str) -> Any:
    for key in path.split("."):
        data = data.get(key) if isinstance(data, Mapping) else None
    return data
