"""The JSON schema of topology files, for editors and for the reference pages.

A file may be a base, an overlay or a whole topology, so nothing is required here: the loader checks
completeness. What a slot may hold depends on its kind, which is the slot's name when not written.
"""

from typing import Any, Literal

from pydantic import TypeAdapter

from .registry import Registry, default_registry, service_class
from .topology import Topology

Schema = dict[str, Any]

_EXTENDS: Schema = {
    "description": "Files, relative to this one, that this one is laid upon.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def topology_schema(registry: Registry | None = None) -> Schema:
    """JSON schema (draft 2020-12) of a topology file with the kinds of `registry`. Raises KindError."""
    known = registry if registry is not None else default_registry()
    inputs: list[tuple[str, Literal["validation"], TypeAdapter[Any]]] = [
        (kind, "validation", TypeAdapter(service_class(kind, known))) for kind in sorted(known)
    ]
    refs, shared = TypeAdapter.json_schemas([("", "validation", TypeAdapter(Topology)), *inputs])
    defs: Schema = shared["$defs"]
    for definition in defs.values():
        definition.pop("required", None)
    topology = defs.pop("Topology")
    defs.pop("ServiceSpec", None)
    kinds: dict[str, Schema] = {kind: refs[kind, "validation"] for kind in sorted(known)}
    defs["Slot"] = _slot(kinds)
    properties = {"extends": _EXTENDS, **topology["properties"], "services": _services(kinds)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "midflight topology",
        **{key: value for key, value in topology.items() if key not in ("title", "properties")},
        "properties": properties,
        "$defs": defs,
    }


def _slot(kinds: dict[str, Schema]) -> Schema:
    """A slot of any name: its `kind` decides, and null deletes it."""
    return {
        "type": ["object", "null"],
        "properties": {"kind": {"enum": list(kinds)}},
        "allOf": [
            {"if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]}, "then": reference}
            for kind, reference in kinds.items()
        ],
    }


def _services(kinds: dict[str, Schema]) -> Schema:
    """The `services` mapping: a slot named like a kind is of that kind unless it says otherwise."""
    other = {"$ref": "#/$defs/Slot"}
    unsaid = {"type": "object", "not": {"required": ["kind"]}}
    return {
        "description": Topology.model_fields["services"].description,
        "type": "object",
        "properties": {kind: {"if": unsaid, "then": reference, "else": other} for kind, reference in kinds.items()},
        "additionalProperties": other,
    }
