"""`midflight config explain KEY`: what a key of the topology means, its type, range and default."""

import contextlib
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from midflight.kernel.spec import ServiceSpec

from .errors import ConfigError, Path, suggest
from .fields import ModelClass, classes_in, models_at
from .registry import KindError, Registry, default_registry, service_class

Schema = dict[str, Any]
MAX_DEPTH = 6
"""Sections within sections that are searched."""


def explain(key: str, registry: Registry | None = None) -> str:
    """A few lines about `key`, such as `services.kl.target` (a slot is named by its kind here).

    A key that holds others is followed by one line for each. For the end of a key, as knobs are called
    (`optim.lr`), the keys that end so are told first. Raises ConfigError with the nearest name.
    """
    known = registry if registry is not None else default_registry()
    try:
        return _explained(key, known)
    except ConfigError:
        if not (found := _ending(key, known)):
            raise
    more = f", and where that is another service by {', '.join(found[1:])}" if found[1:] else ""
    return f"{key}: set by {found[0]}{more}\n{_explained(found[0], known)}"


def _explained(key: str, known: Registry) -> str:
    path: Path = tuple(part for part in key.split(".") if part)
    if path and path[0] in known:  # as a knob is called
        path, key = ("services", *path), f"services.{key}"
    if path[:1] == ("services",) and len(path) > 1 and path[1] not in known:
        raise ConfigError([f"{key}: unknown kind {path[1]!r}{suggest(str(path[1]), known)}"])
    if len(path) == 2 and path[0] == "services":
        lines = [f"{key}: a service"]
        children = models_at(path, None, known)
    elif not path:
        lines, children = [], models_at((), None, known)
    else:
        lines, children = _field(path, key, known)
    if path == ("services",):
        lines += [f"  {kind}" for kind in sorted(known)]
        children = []
    for model in dict.fromkeys(children):
        lines += [f"  {name}: {_summary(model, name)}" for name in model.model_fields]
    return "\n".join(lines)


def _ending(key: str, known: Registry) -> list[str]:
    """Keys of services that end so or whose description calls them the knob of that name; the shortest ones."""
    found = []
    for kind in known:
        with contextlib.suppress(KindError):
            for path, info in _keys(service_class(kind, known), f"services.{kind}"):
                if path.endswith(f".{key}") or f"knob `{key}`" in (info.description or ""):
                    found.append(path)
    least = min((path.count(".") for path in found), default=0)
    return list(dict.fromkeys(path for path in found if path.count(".") == least))


def _keys(model: ModelClass, path: str, depth: int = 0) -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        yield f"{path}.{name}", info
        for child in classes_in(info.annotation) if depth < MAX_DEPTH else ():
            yield from _keys(child, f"{path}.{name}", depth + 1)


def _field(path: Path, key: str, known: Registry) -> tuple[list[str], list[ModelClass]]:
    parents = models_at(path[:-1], None, known)
    name = str(path[-1])
    model = next((parent for parent in parents if name in parent.model_fields), None)
    if model is None:
        names = {field for parent in parents for field in parent.model_fields}
        raise ConfigError([f"{key}: unknown key {name!r}{suggest(name, names)}"])
    children = list(classes_in(model.model_fields[name].annotation))
    lines = [f"{key}: {_summary(model, name)}"]
    if about := _about(model, name, children):
        lines.append(f"  {about}")
    return lines, children


def _about(model: ModelClass, name: str, children: list[ModelClass]) -> str:
    """The field's description, else that of the same field of every service, else its class's first line."""
    inherited = ServiceSpec.model_fields.get(name) if issubclass(model, ServiceSpec) else None
    for info in (model.model_fields[name], inherited):
        if info and info.description:
            return info.description
    return (children[0].__doc__ or "").partition("\n")[0] if children else ""


def _summary(model: ModelClass, name: str) -> str:
    """Type, range, default and whether the key may change during a run, on one line."""
    schema: Schema = model.model_json_schema()["properties"][name]
    words = _type(schema)
    if model.model_fields[name].is_required():
        words += ", required"
    elif (default := schema.get("default")) is not None:
        words += f", default {default if default != '' else repr('')}"
    return words + (", live" if schema.get("live") else "")


def _type(schema: Schema) -> str:
    if "anyOf" in schema or "oneOf" in schema:
        options = schema.get("anyOf") or schema["oneOf"]
        return " or ".join(_type(option) for option in options if option.get("type") != "null")
    if "enum" in schema:
        return " | ".join(str(option) for option in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if schema.get("type") == "object":
        values = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties") or {}]
        return f"mapping of {_type(values[0])}"
    if "$ref" in schema:
        return "mapping"
    bounds = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    limits = [f"{sign} {schema[name]}" for name, sign in bounds if name in schema]
    return " ".join([str(schema.get("type", "anything")), " and ".join(limits)]).strip()
