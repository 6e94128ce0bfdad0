"""Topic live: what people and programs ask of the kernel to change a run while it goes on.

Every request is answered at once, `done` or `refused`; what follows from it is told in the event stream, under the
topics `swap`, `service.state`, `controller.attached`, `controller.promoted`, `controller.rolled_back`,
`controller.detached` and `controller.locked`.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .base import Count, Flat, KnobName, Message, Name, Part, Text

Verb = Literal["pause", "resume", "drain", "restart", "kill"]
Standing = Literal["active", "shadow", "previous", "standby"]
"""active: steers. shadow: decides without power. previous: ruled before the active one and decides on without power.
standby: the successor of a swap that is not yet in force."""


class ServiceDo(Message):
    """Client to kernel: pause (take no new work), resume, drain (finish and leave), restart or kill a service.

    `name` is a process such as `rollout-1`, or a slot, which means all its replicas.
    """

    KIND: ClassVar[str] = "service.do"
    EXAMPLE: ClassVar[dict[str, Any]] = {"verb": "pause", "name": "rollout", "reason": "looking at samples"}
    verb: Verb
    name: Name
    reason: Text = ""


class ServiceScale(Message):
    """Client to kernel: from now on so many replicas of a slot; those too many are drained."""

    KIND: ClassVar[str] = "service.scale"
    EXAMPLE: ClassVar[dict[str, Any]] = {"slot": "rollout", "replicas": 3, "reason": "more samples"}
    slot: Name
    replicas: Annotated[int, Field(ge=0, le=4096)]
    reason: Text = ""


class SwapStart(Message):
    """Client to kernel: replace what runs in a slot by another implementation, without a gap.

    `part_json` is the slot's whole configuration as it would be in a resolved topology. The new process checks it in
    full; the kernel reads only what it needs to start, watch and stop it.
    """

    KIND: ClassVar[str] = "swap.start"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "slot": "kl", "part_json": '{"kind": "kl", "controller_type": "pid"}', "python_path": [], "probation_s": 10.0,
        "reason": "a steadier coefficient",
    }  # fmt: skip
    slot: Name
    part_json: Annotated[str, Field(max_length=200_000, description="the slot's configuration, JSON object")]
    python_path: Annotated[list[str], Field(max_length=32, description="folders appended to its import path")] = []
    probation_s: Annotated[
        float, Field(ge=0, le=3600, description="s it must live, and make progress, before the old one leaves")
    ] = 10.0
    reason: Text = ""


class SwapOk(Message):
    """Kernel to client: the swap has begun; events of topic `swap` with this number tell how it goes."""

    KIND: ClassVar[str] = "swap.ok"
    EXAMPLE: ClassVar[dict[str, Any]] = {"slot": "kl", "number": 1}
    slot: Name
    number: Count


class ControllerDo(Message):
    """Client to kernel: promote a shadow, roll a slot back, detach what was attached, lock a slot by hand or unlock it.

    `name` is a controller for promote and detach, a slot for rollback, lock and unlock.
    """

    KIND: ClassVar[str] = "controller.do"
    EXAMPLE: ClassVar[dict[str, Any]] = {"verb": "promote", "name": "bang", "reason": "agrees for 100 steps"}
    verb: Literal["promote", "rollback", "detach", "lock", "unlock"]
    name: Name
    reason: Text = ""


class ControllersGet(Message):
    """Client to kernel: who steers, who would, and by what parameters?"""

    KIND: ClassVar[str] = "controllers.get"
    EXAMPLE: ClassVar[dict[str, Any]] = {}


class ControllerStatus(Part):
    """One controller. Its parameters are the knobs whose names begin with its own, as in `kl.target_kl`."""

    name: Name
    generation: Count
    slot: Name
    standing: Standing
    kind: Annotated[str, Field(max_length=200)]
    holds: Annotated[list[KnobName], Field(max_length=64, description="knobs it steers, or would")]
    attached: Annotated[bool, Field(description="from outside the topology: the warden does not restart it")]
    decisions: Annotated[Count, Field(description="decided so far by this process")]
    stats: Flat = {}


class Controllers(Message):
    """Kernel to client: every controller, by slot, the active one first."""

    KIND: ClassVar[str] = "controllers"
    EXAMPLE: ClassVar[dict[str, Any]] = {"controllers": [], "locked": ["kl"]}
    controllers: Annotated[list[ControllerStatus], Field(max_length=512)]
    locked: Annotated[list[Name], Field(description="slots whose knobs a person holds")] = []


KINDS = (ServiceDo, ServiceScale, SwapStart, SwapOk, ControllerDo, ControllersGet, Controllers)
