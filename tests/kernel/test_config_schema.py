"""The schema and the explanations: generated from the classes, complete, and true to the loader."""

import json
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from midflight.kernel.config import ConfigError, Topology, default_registry, explain, service_class, topology_schema
from midflight.kernel.config.fields import classes_in
from midflight.kernel.spec import Config, ServiceSpec


class Limits(Config):
    """A nested mapping."""

    low: float = Field(0.0, ge=0, le=1, description="Lower limit.")


class Kl(ServiceSpec):
    """A controller."""

    kind: Literal["kl"] = "kl"
    target: float = Field(gt=0, description="Wanted divergence, in nats.", json_schema_extra={"live": True})
    limits: Limits | None = Field(None, description="Bounds.")
    mode: Literal["active", "shadow"] = Field("active", description="Whether decisions count.")


REGISTRY = {"kl": Kl}


def test_explain_a_value() -> None:
    """A key gives its type, range, default, whether it is live, and its description."""
    assert explain("services.kl.target", REGISTRY) == (
        "services.kl.target: number > 0, required, live\n  Wanted divergence, in nats."
    )
    assert explain("kl.target", REGISTRY) == explain("services.kl.target", REGISTRY)  # as its knob is called
    assert explain("services.kl.mode", REGISTRY).splitlines()[0] == (
        "services.kl.mode: active | shadow, default active"
    )
    assert explain("services.kl.env", REGISTRY).startswith("services.kl.env: mapping of string, default {}\n")
    assert explain("services.kl.depends_on", REGISTRY).startswith(
        "services.kl.depends_on: list of string, default []\n"
    )
    assert explain("services.kl.limits.low", REGISTRY).startswith(
        "services.kl.limits.low: number >= 0 and <= 1, default 0.0\n"
    )


def test_explain_a_mapping() -> None:
    """A key that holds others lists them."""
    assert explain("services", REGISTRY).splitlines()[-1] == "  kl"
    assert "  target: number > 0, required, live" in explain("services.kl", REGISTRY).splitlines()
    assert explain("services.kl.kind", REGISTRY).endswith(
        "  Which service runs in this slot; the slot's own name when omitted."
    )
    assert explain("services.kl.limits", REGISTRY) == (
        "services.kl.limits: mapping\n  Bounds.\n  low: number >= 0 and <= 1, default 0.0"
    )
    assert explain("", REGISTRY).splitlines()[0] == "  version: 1, required"


def test_explain_the_end_of_a_key() -> None:
    """As knobs are called that do not bear a slot's name: the keys that set them are told."""
    assert explain("limits.low", REGISTRY) == (
        "limits.low: set by services.kl.limits.low\n" + explain("services.kl.limits.low", REGISTRY)
    )
    head, *rest = explain("optim.lr").splitlines()
    assert head.startswith("optim.lr: set by services.learner.optim.lr, and where that is another service by services.")
    assert rest == explain("services.learner.optim.lr").splitlines()
    for knob, key in (("kl.coef", "kl.coef"), ("clip.range", "clip"), ("entropy.coef", "entropy_coef")):
        assert explain(knob).startswith(f"{knob}: set by services.learner.{key}\n")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("services.kll", "services.kll: unknown kind 'kll' - did you mean 'kl'?"),
        ("services.kl.tarrget", "services.kl.tarrget: unknown key 'tarrget' - did you mean 'target'?"),
        ("modle", "modle: unknown key 'modle' - did you mean 'model'?"),
        ("run.x", "run.x: unknown key 'x'"),
    ],
)
def test_explain_errors(key: str, message: str) -> None:
    """An unknown key is refused with the nearest one."""
    with pytest.raises(ConfigError) as caught:
        explain(key, REGISTRY)
    assert str(caught.value) == message


def test_schema_covers_files() -> None:
    """Every key a file may have is in the schema, nothing is required, and references resolve."""
    schema = topology_schema(REGISTRY)
    assert set(schema["properties"]) == {"extends", *Topology.model_fields}
    assert schema["additionalProperties"] is False
    assert "required" not in schema
    assert schema["properties"]["services"]["properties"]["kl"]["then"] == {"$ref": "#/$defs/Kl"}
    assert set(schema["$defs"]["Kl"]["properties"]) == set(Kl.model_fields)
    assert "required" not in schema["$defs"]["Kl"]
    assert schema["$defs"]["Slot"]["properties"]["kind"] == {"enum": ["kl"]}
    for reference in _references(schema):
        assert reference.removeprefix("#/$defs/") in schema["$defs"]
    json.dumps(schema, allow_nan=False)


def _references(part: Any) -> list[str]:
    if isinstance(part, dict):
        here = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return here + [reference for item in part.values() for reference in _references(item)]
    return [reference for item in part for reference in _references(item)] if isinstance(part, list) else []


@pytest.mark.parametrize("kind", sorted(default_registry()))
def test_every_kind_is_whole(kind: str) -> None:
    """Every built-in kind loads, says its kind, names its entry, and describes every field of every class."""
    cls = service_class(kind)
    assert kind in str(cls.model_json_schema()["properties"]["kind"])
    module, _, name = cls.entry.partition(":")
    assert module.startswith("midflight.services.")
    assert name
    _described(cls)


def test_topology_is_described() -> None:
    """The topology's own fields all say what they are."""
    _described(Topology)


def _described(model: type[BaseModel]) -> None:
    for name, info in model.model_fields.items():
        inside = list(classes_in(info.annotation))
        assert info.description or name == "kind" or inside, f"{model.__name__}.{name} has no description"
        for inner in inside:
            if inner is not ServiceSpec:
                _described(inner)


def test_schema_of_the_real_kinds() -> None:
    """The schema of everything that ships can be made; kinds that share class names do not collide."""
    schema = topology_schema()
    assert set(schema["properties"]["services"]["properties"]) == set(default_registry())
    assert all(reference.removeprefix("#/$defs/") in schema["$defs"] for reference in _references(schema))
