"""The topology: one document that names a run, its model and its services."""

import graphlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from midflight.kernel.spec import Config, ServiceSpec, TopologyPath

from .errors import Path, suggest
from .model import ModelConfig
from .registry import KindError, Registry, service_class

RESERVED_SLOTS = frozenset({"warden", "kernel"})


def registry_of(info: ValidationInfo) -> Registry | None:
    """The registry a caller passed as pydantic context, or None for the default one."""
    context = info.context
    return context.get("registry") if isinstance(context, dict) else None


def _slot_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", name):
        raise ValueError("a slot name has up to 32 of a-z 0-9 _ - and begins with a letter")
    if re.search(r"-[0-9]+$", name):
        raise ValueError("a slot name must not end in a number: NAME-0 is NAME's first replica")
    if name in RESERVED_SLOTS:
        raise ValueError(f"{name!r} is the name of a process of midflight itself")
    return name


def _service(value: object, info: ValidationInfo) -> object:
    """Validate one slot by the class of its kind."""
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return value
    try:
        cls = service_class(value["kind"], registry_of(info))
    except KindError as error:
        raise PydanticCustomError("kind", "{text}", {"text": str(error)}) from error
    return cls.model_validate(value, context=info.context)


SlotName = Annotated[str, AfterValidator(_slot_name)]
Slot = Annotated[SerializeAsAny[ServiceSpec], BeforeValidator(_service)]


class Topology(Config):
    """A run, checked. Services are instances of the config class of their kind."""

    version: Literal[1] = Field(description="Version of this format.")
    run: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_.-]{0,39}$", description="Name of the run; its id is this and 8 hex digits."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed that every service derives its own from.")
    model: ModelConfig = Field(description="The model that is trained.")
    python_path: list[TopologyPath] = Field(
        [], description="Folders appended to the import path of services, for the user's own code."
    )
    services: dict[SlotName, Slot] = Field(description="Slot name to service; at least one.", min_length=1)

    @field_validator("services", mode="before")
    @classmethod
    def _kind_defaults_to_slot(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: {"kind": name, **slot} if isinstance(slot, dict) else slot for name, slot in value.items()}

    @model_validator(mode="after")
    def _dependencies(self) -> Self:
        for name, slot in self.services.items():
            needed = [other for other, spec in self.services.items() if other != name and spec.part in slot.follows]
            self.services[name] = slot.model_copy(update={"depends_on": [*dict.fromkeys([*slot.depends_on, *needed])]})
        errors = dependency_errors({name: slot.depends_on for name, slot in self.services.items()})
        if errors:
            raise ValidationError.from_exception_data("Topology", [_detail("dependency", *one) for one in errors])
        return self

    @model_validator(mode="after")
    def _conflicts(self) -> Self:
        details = []
        for name, slot in self.services.items():
            others = {other: spec for other, spec in self.services.items() if other != name}
            for part in slot.follows:
                if not any(spec.part == part for spec in others.values()):
                    why = f"no slot of kind {part}, without which a {slot.part} can do nothing: add one"
                    details.append(_detail("conflict", ("services", name, "kind"), why))
            for field, why in (*slot.conflicts(others), *slot.misfits(self.model.shape)):
                details.append(_detail("conflict", ("services", name, *field.split(".")), why))
        if details:
            raise ValidationError.from_exception_data("Topology", details)
        return self

    def start_order(self) -> list[str]:
        """Slot names, each after those it depends on."""
        return list(graphlib.TopologicalSorter({k: s.depends_on for k, s in self.services.items()}).static_order())


def _detail(kind: Literal["dependency", "conflict"], path: Path, text: str) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError(kind, "{text}", {"text": text}), loc=path, input=None)


def dependency_errors(depends_on: Mapping[str, Sequence[str]]) -> list[tuple[Path, str]]:
    """What is wrong with the dependencies between slots: unknown names first, else one cycle."""
    errors: list[tuple[Path, str]] = [
        (("services", slot, "depends_on", i), f"unknown slot {name!r}{suggest(name, depends_on)}")
        for slot, names in depends_on.items()
        for i, name in enumerate(names)
        if name not in depends_on
    ]
    if errors:
        return errors
    try:
        graphlib.TopologicalSorter(depends_on).prepare()
    except graphlib.CycleError as error:
        # graphlib names each before the one that waits for it; read backwards it says "depends on".
        cycle: list[str] = list(reversed(error.args[1]))
        start = cycle.index(min(cycle))
        ring = [*cycle[start:-1], *cycle[:start], cycle[start]]
        return [(("services", ring[0], "depends_on"), f"cycle: {' -> '.join(ring)}")]
    return []
