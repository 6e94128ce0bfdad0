"""Which config classes lie at a path of a topology: for suggestions and for `config explain`."""

import types
from collections.abc import Iterator
from typing import Annotated, Union, get_args, get_origin

from pydantic import BaseModel

from midflight.kernel.spec import ServiceSpec

from .errors import Path
from .registry import KindError, Registry, service_class
from .topology import Topology

ModelClass = type[BaseModel]


def models_at(path: Path, services: object, registry: Registry | None) -> list[ModelClass]:
    """The config classes a mapping at `path` is checked by: several for a union, none for a plain value.

    `services` is the raw `services` mapping, which tells the kind of a slot; a slot it does not have is
    taken for a kind.
    """
    if len(path) >= 2 and path[0] == "services":
        slot = str(path[1])
        raw = services.get(slot) if isinstance(services, dict) else None
        kind = raw.get("kind", slot) if isinstance(raw, dict) else slot
        try:
            found: list[ModelClass] = [service_class(str(kind), registry)]
        except KindError:
            found = [ServiceSpec]
        path = path[2:]
    else:
        found = [Topology]
    for key in path:
        found = [model for parent in found for model in _below(parent, key)]
    return found


def _below(parent: ModelClass, key: str | int) -> list[ModelClass]:
    info = parent.model_fields.get(str(key))
    if info is None:  # an item of a list or dict field, whose classes the parent step already gave
        return [parent]
    return list(classes_in(info.annotation))


def classes_in(annotation: object) -> Iterator[ModelClass]:
    """The config classes inside an annotation, through unions and containers."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from classes_in(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType, list, tuple, dict):
        for argument in get_args(annotation):
            yield from classes_in(argument)
