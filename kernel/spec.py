"""The base classes of everything a topology may say: `Config`, `ServiceSpec` and path types.

A service's config module subclasses `ServiceSpec` and imports nothing heavier than pydantic, so that a
topology can be checked, shown and documented without torch. Two conventions follow from how topology
files are merged (`kernel/config`):

- `null` in a topology deletes the key, so an optional field's default must be `None`;
- a relative path means "relative to the file it was written in". Strings read from a file are
  `LocatedStr`, which remember that folder until a path type resolves them to an absolute string.

A field that may change while a run goes on says so, and is a knob `slot.field` then:

    temperature: float = Field(1.0, ge=0, description="...", json_schema_extra=live(0.0, 10.0, when="next sample"))
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

from midflight.messages.base import Scalar
from midflight.messages.knobs import KnobDeclaration

DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"
"""Names of devices that a service may compute on."""

ELSEWHERE: Final = "elsewhere"
"""In the context of a validation: what a topology names need not be on this machine."""

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class LocatedStr(str):
    """A string that remembers `folder`, the absolute folder of the file it was written in."""

    __slots__ = ("folder",)
    folder: str

    def __new__(cls, text: str, folder: str) -> Self:
        """Wrap `text`, written in a file of `folder`."""
        self = super().__new__(cls, text)
        self.folder = folder
        return self


def must_be_here(value: object, info: ValidationInfo) -> bool:
    """Whether what a value names has to be on this machine: what a user wrote, for a topology that is to run here."""
    return isinstance(value, LocatedStr) and not (info.context or {}).get(ELSEWHERE)


def path_rule(*keep: str, exists: bool = False, model: bool = False) -> BeforeValidator:
    """A validator that makes a path absolute, for use as `Annotated[str, path_rule(...)]`.

    `keep` names what is not a path and is left alone: a whole value (`"bytes"`), a prefix that ends in a
    colon (`"task:"`), or `"://"` for anything that contains it. A value that no file wrote (a default, a call
    from Python) is relative to the working directory. `exists` refuses what a user wrote and is not on disk, `model`
    a run in place of the model that it has left; a resolved topology is read back without these checks, so that a
    kernel can restart when a file has gone.
    """

    def resolve(value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str) or any(_kept(value, rule) for rule in keep):
            return value
        if not value or "\0" in value:
            raise ValueError("a path must not be empty or contain a NUL character")
        folder = value.folder if isinstance(value, LocatedStr) else os.getcwd()
        path = os.path.normpath(os.path.join(folder, os.path.expanduser(value)))
        if exists and must_be_here(value, info) and not os.path.exists(path):
            raise ValueError(f"no such file or folder: {path}")
        if model and isinstance(value, LocatedStr) and os.path.isfile(os.path.join(path, "run.json")):
            raise ValueError(f"that is a run; {_model_of_run(value, path)}")
        return path

    return BeforeValidator(resolve)


def _model_of_run(value: str, path: str) -> str:
    if os.path.isdir(os.path.join(path, "model")):
        return f"its model is {os.path.join(value, 'model')}"
    return f"`midflight models export {value} --out FOLDER` makes a folder of its model"


def _kept(value: str, rule: str) -> bool:
    if rule == "://":
        return rule in value
    return value.startswith(rule) if rule.endswith(":") else value == rule


TopologyPath = Annotated[str, path_rule()]
"""A path, relative to the file it was written in; validated to an absolute string."""

ExistingPath = Annotated[str, path_rule(exists=True)]
"""A `TopologyPath` that must exist when the topology is loaded."""

ModelPath = Annotated[str, path_rule(exists=True, model=True)]
"""An `ExistingPath` of a model's folder, which is no run's."""

TopologyPathOrRef = Annotated[str, path_rule("task:", "://")]
"""A `TopologyPath`, or `task:NAME`, or a URL; the last two are left as they are."""


class Config(BaseModel):
    """Base of every configuration class: closed, frozen, finite, with checked defaults."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        hide_input_in_errors=True,
    )


class ServiceSpec(Config):
    """What the kernel knows of any service: how to start, watch, restart and stop it (OTP's words).

    A service's config class adds its own fields, narrows `kind` to a `Literal` and names its `entry`.
    """

    entry: ClassVar[str] = ""
    """Where the service's class lives: `package.module:Class`. Imported only by the service's process."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Fields (dotted) that a resumed run must keep, because what the run has stored means something else without."""
    trains: ClassVar[bool] = False
    """Whether it trains the run's model: a resumed run keeps its slot and the part that it plays."""
    plays: ClassVar[str] = ""
    """The built-in kind whose part it takes towards other services, e.g. `rollout`; its own kind when empty."""
    follows: ClassVar[tuple[str, ...]] = ()
    """The parts without which it can do nothing: slots that play one are in its `depends_on` without being named."""
    takeover: ClassVar[Literal["beside", "after", "restart", "never"]] = "beside"
    """How a successor takes over in a swap (`kernel/swap.py`): while the old one works on, once it has left, started
    only then, or not while the run goes on."""

    kind: str = Field(description="Which service runs in this slot; the slot's own name when omitted.")
    replicas: int = Field(1, ge=0, le=4096, description="Number of processes of this service.")
    restart: Literal["permanent", "transient", "temporary"] = Field(
        "permanent",
        description="When to restart: always, only after an abnormal exit, or never.",
    )
    strategy: Literal["one_for_one", "rest_for_one", "one_for_all"] = Field(
        "one_for_one",
        description="Who restarts with a process that dies: itself; also those that depend on it; all replicas.",
    )
    significant: bool = Field(
        False, description="Whether its normal exit ends the run, and the give-up of its last process fails it."
    )
    stop_last: bool = Field(
        False, description="Whether it is drained only when all others are gone, to record their last words."
    )
    depends_on: list[str] = Field(
        [],
        description="Slots that must be ready before this one starts, and drain after it; those that its kind always "
        "needs need not be named.",
    )
    start_timeout_s: float = Field(120, gt=0, description="Longest time from spawn to ready, in seconds.")
    heartbeat_timeout_s: float = Field(
        5.0, ge=1, description="Silence of the main loop after which a process counts as hung, in seconds."
    )
    intensity: int = Field(5, ge=0, description="Restarts allowed within `period_s` before giving up.")
    period_s: float = Field(60, gt=0, description="Window in which restarts are counted, in seconds.")
    backoff_s: float = Field(0.05, ge=0, description="Pause before the first restart, doubled each time, in seconds.")
    backoff_max_s: float = Field(5, ge=0, description="Longest pause before a restart, in seconds.")
    shutdown_s: float = Field(10, ge=0, description="Time to drain before the process is killed, in seconds.")
    memory_limit_mb: int | None = Field(
        None, ge=1, description="Resident memory above which the process is killed, in MiB; none when omitted."
    )
    env: dict[EnvName, str] = Field({}, description="Environment variables added for the process.")
    nice: int = Field(0, ge=-20, le=19, description="CPU scheduling niceness, -20 (first) to 19 (last).")
    threads: int = Field(1, ge=1, description="Threads of numeric libraries (OpenMP, torch) per process.")

    def conflicts(self, others: Mapping[str, "ServiceSpec"]) -> Iterable[tuple[str, str]]:
        """(own field, why) for what does not go together with the other slots; they are told apart by `part`."""
        return ()

    def misfits(self, shape: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
        """(own field, why) for what does not go with the model, of which `shape` has what its configuration says."""
        return ()

    @property
    def part(self) -> str:
        """The built-in kind whose part it takes."""
        return self.plays or self.kind

    @model_validator(mode="after")
    def _backoff_in_order(self) -> Self:
        if self.backoff_s > self.backoff_max_s:
            raise ValueError(f"backoff_s ({self.backoff_s:g}) must not exceed backoff_max_s ({self.backoff_max_s:g})")
        return self


C = TypeVar("C", bound=Config)
LIVE: Final = "x-live"
"""Where a field's schema says that it may change while the run goes on."""
_KINDS: Final[Mapping[object, Literal["float", "int", "bool"]]] = {float: "float", int: "int", bool: "bool"}


def live(low: float | None = None, high: float | None = None, unit: str = "", when: str = "next step") -> Any:
    """`json_schema_extra` of a field that is a knob. Bounds are inclusive; `when`: at which boundary it is used."""
    return {LIVE: {"low": low, "high": high, "unit": unit, "when": when}}


def knob_prefix(name: str) -> str:
    """What the knobs of the slot or controller `name` begin with."""
    return f"{name.replace('-', '_')}."


def live_knobs(config: Config, name: str) -> tuple[KnobDeclaration, ...]:
    """The live fields of a configuration, those of its sections too, as knobs `name.field`; their values are defaults.

    A section may be one of a mapping, whose key is then part of the name: `limits.kl.bound`.
    A value beyond the bounds moves them. An optional field without a value is no knob. Raises TypeError for a field
    that is no bool, int, float or Literal of strings.
    """
    found = _live_fields(config, "")
    return tuple(_declaration(knob_prefix(name) + field, info, value) for field, info, value in found)


def with_live(config: C, field: str, value: Scalar) -> C:
    """A copy with another value in one field, `a.b` for a field of a section. See `with_values`."""
    return with_values(config, {field: value})


def with_values(config: C, values: Mapping[str, Scalar]) -> C:
    """A copy with other values in some fields, checked as a whole. Raises ValueError, saying what does not fit."""
    data = config.model_dump()
    for field, value in values.items():
        *sections, last = field.split(".")
        inner = data
        for section in sections:
            inner = inner[section]
        inner[last] = value
    try:
        return type(config).model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        text = str(first["msg"]).removeprefix("Value error, ")
        raise ValueError(f"{where}: {text}" if where else text) from None


def _live_fields(config: BaseModel, prefix: str) -> Iterator[tuple[str, FieldInfo, Any]]:
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        sections = value if isinstance(value, dict) else {"": value}
        for key, section in sections.items():
            if isinstance(section, Config):
                yield from _live_fields(section, f"{prefix}{name}.{key}." if key else f"{prefix}{name}.")
        if isinstance(info.json_schema_extra, dict) and LIVE in info.json_schema_extra and value is not None:
            yield prefix + name, info, value


def _declaration(knob: str, info: FieldInfo, value: Any) -> KnobDeclaration:
    extra = info.json_schema_extra
    assert isinstance(extra, dict)
    about: Any = extra[LIVE]
    options = [one for one in get_args(info.annotation) if one is not NoneType] or [info.annotation]
    choices = [one for one in options if isinstance(one, str)]
    if not choices and options[0] not in _KINDS:
        raise TypeError(f"{knob} cannot be a knob: it is no bool, int, float or Literal of strings")
    return KnobDeclaration(
        name=knob,
        kind="choice" if choices else _KINDS[options[0]],
        unit=about["unit"],
        default=value,
        low=about["low"] if about["low"] is None else min(about["low"], value),
        high=about["high"] if about["high"] is None else max(about["high"], value),
        choices=choices,
        when=about["when"],
        description=info.description or "",
    )
