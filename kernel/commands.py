"""What the supervisor asks the kernel to do: plain values, executed in the order of the list."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from midflight.messages.base import Scalar


@dataclass(frozen=True, slots=True)
class Spawn:
    """To the warden: start this generation. The supervisor's state must be durable first, or a killed kernel
    could hand out the same generation twice."""

    name: str
    generation: int
    slot: str
    part: str = ""
    beside: bool = False
    """Whether another generation of the name lives, and is to go on living."""


@dataclass(frozen=True, slots=True)
class Kill:
    """To the warden: send `signal` to this generation: SIGKILL to its whole process group, any other to its leader."""

    name: str
    generation: int
    signal: int
    why: str


@dataclass(frozen=True, slots=True)
class SendDrain:
    """To the service: take no new work, hand in what you hold, leave with code 0; SIGTERM in `deadline_s`."""

    name: str
    generation: int
    deadline_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Gone:
    """This instance is no more: free its knobs, tell the ledger. Exactly one for each instance that ran."""

    name: str
    generation: int
    why: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """Ask the old one for its state and give it to the new one; then `Supervisor.on_handed`."""

    name: str
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class Flip:
    """The new one steers and works from now on: its parameters are declared, the knobs of the old one are its own.

    `kept`: it goes back to one that ruled before, whose parameters were these.
    """

    name: str
    old: int
    new: int
    kept: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PutBack:
    """The former configuration of a slot is started again: its parameters are what they were."""

    slot: str
    kept: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunOver:
    """Everything has ended; the run's exit code and its reason. The last command of a run."""

    code: int
    why: str


@dataclass(frozen=True, slots=True)
class Emit:
    """Publish an event. The latest body of each (topic, key) belongs in the snapshot when `key` is not empty;
    `final` says that the key's subject has ceased to exist."""

    topic: str
    key: str = ""
    body: dict[str, Scalar] = field(default_factory=dict)
    final: bool = False


Command = Spawn | Kill | SendDrain | Gone | HandOver | Flip | PutBack | RunOver | Emit
