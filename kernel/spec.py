"""The base classes of everything a topology may say: `Config`, `ServiceSpec` and path types.

A service's config module subclasses `ServiceSpec` and imports nothing heavier than pydantic, so that a
topology can be checked, shown and documented without torch. Two conventions follow from how topology
files are merged (`kernel/config`):

- `null` in a topology deletes the key, so an optional field's default must be `None`;
- a relative path means "relative to the file it was written in". Strings read from a file are
  `LocatedStr`, which remember that folder until a path type resolves them to an absolute string.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

DEVICE = r"^(auto|cpu|cuda(:\d+)?)$"
"""Names of devices that a service may compute on."""

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


def path_rule(*keep: str, exists: bool = False) -> BeforeValidator:
    """A validator that makes a path absolute, for use as `Annotated[str, path_rule(...)]`.

    `keep` names what is not a path and is left alone: a whole value (`"bytes"`), a prefix that ends in a
    colon (`"task:"`), or `"://"` for anything that contains it. A value that no file wrote (a default, a call
    from Python) is relative to the working directory. `exists` refuses what a user wrote and is not on disk;
    a resolved topology is read back without that check, so that a kernel can restart when a file has gone.
    """

    def resolve(value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str) or any(_kept(value, rule) for rule in keep):
            return value
        if not value or "\0" in value:
            raise ValueError("a path must not be empty or contain a NUL character")
        folder = value.folder if isinstance(value, LocatedStr) else os.getcwd()
        path = os.path.normpath(os.path.join(folder, os.path.expanduser(value)))
        if exists and isinstance(value, LocatedStr) and not os.path.exists(path):
            raise ValueError(f"no such file or folder: {path}")
        return path

    return BeforeValidator(resolve)


def _kept(value: str, rule: str) -> bool:
    if rule == "://":
        return rule in value
    return value.startswith(rule) if rule.endswith(":") else value == rule


TopologyPath = Annotated[str, path_rule()]
"""A path, relative to the file it was written in; validated to an absolute string."""

ExistingPath = Annotated[str, path_rule(exists=True)]
"""A `TopologyPath` that must exist when the topology is loaded."""

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
    plays: ClassVar[str] = ""
    """The built-in kind whose part it takes towards other services, e.g. `rollout`; its own kind when empty."""

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
    depends_on: list[str] = Field([], description="Slots that must be ready before this one starts.")
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

    @property
    def part(self) -> str:
        """The built-in kind whose part it takes."""
        return self.plays or self.kind

    @model_validator(mode="after")
    def _backoff_in_order(self) -> Self:
        if self.backoff_s > self.backoff_max_s:
            raise ValueError(f"backoff_s ({self.backoff_s:g}) must not exceed backoff_max_s ({self.backoff_max_s:g})")
        return self
