"""Topic knobs: every steerable quantity of a run, who holds it, and when a change took effect."""

import re
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from .base import Count, Epoch, KnobName, Message, Name, Part, Scalar, Text

REWARD_KNOB: Final = "objectives.weights."
"""Begins the knob of a named reward's weight."""
REWARD_NAME: Final = re.compile(r"[a-z0-9_]{1,40}")
"""Names of rewards whose weight can be a knob."""
MOST_REWARD_WEIGHT: Final = 1e6
"""Bound of such a knob, either way."""


Fallback = Literal["hold", "default", "former"]
"""What follows when an owner lets go: the value stays, returns to the default, or the former owner has it again."""


class KnobDeclaration(Part):
    """One knob, declared by the service that applies it."""

    name: KnobName
    kind: Literal["float", "int", "bool", "choice"]
    unit: Annotated[str, Field(max_length=40)]
    default: float | int | bool | str
    low: float | int | None = None
    high: float | int | None = None
    choices: Annotated[list[str], Field(max_length=64)] = []
    live: Annotated[bool, Field(description="false: may only be set before the run")] = True
    when: Annotated[str, Field(max_length=80, description="at which boundary a new value is used")] = "next step"
    description: Text


class KnobAcquire(Message):
    """Controller to kernel: I want to hold this knob."""

    KIND: ClassVar[str] = "knob.acquire"
    EXAMPLE: ClassVar[dict[str, Any]] = {"knob": "kl.coef", "fallback": "default"}
    knob: KnobName
    fallback: Annotated[
        Fallback | None, Field(description="when it leaves; None: former for a knob that was taken, else hold")
    ] = None


class KnobGranted(Message):
    """Kernel to owner: yours, under this epoch; `value` is what it stands at."""

    KIND: ClassVar[str] = "knob.granted"
    EXAMPLE: ClassVar[dict[str, Any]] = {"knob": "kl.coef", "epoch": 3, "value": 0.2, "version": 11}
    knob: KnobName
    epoch: Epoch
    value: Scalar
    version: Count


class KnobRelease(Message):
    """Owner (with its epoch) or a person (without) to kernel: given back, to its former owner if there was one."""

    KIND: ClassVar[str] = "knob.release"
    EXAMPLE: ClassVar[dict[str, Any]] = {"knob": "kl.coef", "epoch": 3}
    knob: KnobName
    epoch: Epoch | None = None


class KnobSet(Message):
    """Owner (with its epoch) or a person (without) to kernel: a new value."""

    KIND: ClassVar[str] = "knob.set"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "knob": "optim.lr", "value": 3e-4, "epoch": None, "if_version": 4, "take": False, "reason": "plateau",
    }  # fmt: skip
    knob: KnobName
    value: Scalar
    epoch: Epoch | None = None
    if_version: Annotated[Count | None, Field(description="refuse unless the knob is still at this version")] = None
    take: Annotated[bool, Field(description="a person takes the knob from its owner")] = False
    reason: Text = ""
    for_steps: Annotated[
        int | None, Field(ge=1, le=2**40, description="training steps after which the former value, or owner, is back")
    ] = None


class KnobOk(Message):
    """Kernel to setter: accepted as this version and sent to the service that applies it."""

    KIND: ClassVar[str] = "knob.ok"
    EXAMPLE: ClassVar[dict[str, Any]] = {"knob": "optim.lr", "value": 3e-4, "version": 5}
    knob: KnobName
    value: Scalar
    version: Count


class KnobApply(Message):
    """Kernel to the applying service: use this value from your next step on."""

    KIND: ClassVar[str] = "knob.apply"
    EXAMPLE: ClassVar[dict[str, Any]] = {"knob": "optim.lr", "value": 3e-4, "version": 5}
    knob: KnobName
    value: Scalar
    version: Count


class KnobApplied(Message):
    """Applying service to kernel: in force since this step, or refused: the kernel then takes it back."""

    KIND: ClassVar[str] = "knob.applied"
    EXAMPLE: ClassVar[dict[str, Any]] = {"knob": "optim.lr", "version": 5, "step": 42}
    knob: KnobName
    version: Count
    step: Count
    refused: Annotated[str | None, Field(max_length=500, description="why the service cannot use this value")] = None


class KnobGet(Message):
    """Client to kernel: all knobs, or those under a prefix."""

    KIND: ClassVar[str] = "knob.get"
    EXAMPLE: ClassVar[dict[str, Any]] = {"prefix": "kl."}
    prefix: Annotated[str, Field(max_length=64)] = ""


class KnobStatus(Part):
    """A knob as it stands."""

    declaration: KnobDeclaration
    applies: Name
    value: Scalar
    version: Count
    owner: Annotated[str | None, Field(max_length=80)]
    epoch: Epoch
    applied_step: Count | None = None
    author: Annotated[str, Field(max_length=80)] = ""
    reason: Text = ""
    until_step: Annotated[Count | None, Field(description="the former value, or owner, is back from this step")] = None


class Knobs(Message):
    """Kernel to client: the knob table."""

    KIND: ClassVar[str] = "knobs"
    EXAMPLE: ClassVar[dict[str, Any]] = {"knobs": []}
    knobs: Annotated[list[KnobStatus], Field(max_length=512)]


KINDS = (
    KnobAcquire, KnobGranted, KnobRelease, KnobSet, KnobOk, KnobApply, KnobApplied, KnobGet, Knobs,
)  # fmt: skip
