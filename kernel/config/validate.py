"""From pydantic's account of what is wrong to lines that name the place and the remedy."""

from collections.abc import Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from midflight.kernel.spec import ELSEWHERE

from .errors import Origin, Path, Problem, shown, suggest
from .fields import models_at
from .registry import Registry
from .topology import Topology, dependency_errors

_UNWRITTEN = object()
"""Stands for the value of a field that no file wrote, while walking a location."""


def validate(
    data: Mapping[str, object], places: Mapping[Path, Origin], registry: Registry | None, elsewhere: bool = False
) -> tuple[Topology | None, list[Problem]]:
    """The checked topology, or None and every mistake in it. `places` says where each key was written."""
    try:
        return Topology.model_validate(data, context={"registry": registry, ELSEWHERE: elsewhere}), []
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
    services = data.get("services")
    problems = [_problem(detail, data, places, registry) for detail in details]
    if not any(detail["type"] == "dependency" for detail in details):
        # The model checks these last, so not at all when a field is wrong.
        for path, text in dependency_errors(_written_dependencies(services)):
            problems.append(Problem(_place(path, places), path, text))
    return None, problems


def _problem(
    detail: ErrorDetails, data: Mapping[str, object], places: Mapping[Path, Origin], registry: Registry | None
) -> Problem:
    path = _key_path(detail, data, registry)
    if detail["type"] == "kind":
        path = (*path, "kind")
    at = _place(path, places)
    if detail["type"] == "extra_forbidden":
        name = str(path[-1])
        models = models_at(path[:-1], data.get("services"), registry)
        hint = suggest(name, {field for model in models for field in model.model_fields})
        return Problem(at, path, f"unknown key {name!r}{hint}")
    if detail["type"] == "missing":
        return Problem(at, path, "a required key is missing")
    return Problem(at, path, _text(detail, path))


def _text(detail: ErrorDetails, path: Path) -> str:
    kind, value = detail["type"], detail["input"]
    text = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    for tail in (", unable to parse", ", got a number"):
        text = text.partition(tail)[0]
    if kind in ("kind", "dependency", "conflict") or (kind == "value_error" and isinstance(value, dict | list)):
        return text
    hint = " - write it in quotes" if kind == "string_type" and isinstance(value, int | float) else ""
    return f"{text} (got {shown(value, path)}){hint}"


def _key_path(detail: ErrorDetails, data: Mapping[str, object], registry: Registry | None) -> Path:
    """pydantic's location without what is no key: union tags, validator names, `[key]`."""
    here: object = data
    path: list[str | int] = []
    for part in detail["loc"]:
        found = _child(here, part)
        if found is not _UNWRITTEN:
            here = found
        elif isinstance(here, dict) and _is_field(part, tuple(path), data, registry):
            here = _UNWRITTEN
        elif here is not _UNWRITTEN:
            continue
        path.append(part)
    return tuple(path)


def _child(here: object, part: str | int) -> object:
    if isinstance(here, dict):
        return here.get(part, _UNWRITTEN)
    if isinstance(here, list) and isinstance(part, int) and part < len(here):
        return here[part]
    return _UNWRITTEN


def _is_field(part: str | int, path: Path, data: Mapping[str, object], registry: Registry | None) -> bool:
    return any(part in model.model_fields for model in models_at(path, data.get("services"), registry))


def _place(path: Path, places: Mapping[Path, Origin]) -> Origin:
    """Where the nearest key at or above `path` was written."""
    return next(places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in places)


def _written_dependencies(services: object) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for slot, spec in services.items() if isinstance(services, dict) else ():
        names = spec.get("depends_on") if isinstance(spec, dict) else None
        out[slot] = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return out
