"""Topic control: who is alive, who may stay, what a run is doing, and how it ends. Spoken with the kernel."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .base import Count, Flat, Identity, KnobName, Message, Name, Part, Text
from .knobs import Fallback, KnobDeclaration

MAX_KIND = 200
"""Characters of a service's kind: a short name, or `package.module:Class`."""


class Hello(Message):
    """Service or client to kernel, first thing after connecting and again after a changed boot id."""

    KIND: ClassVar[str] = "hello"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "proto_min": 1, "proto_max": 1, "pid": 4242, "role": "service", "version": "0.1.0", "knobs": [],
    }  # fmt: skip
    proto_min: Annotated[int, Field(ge=0, le=255, description="lowest major this side speaks")]
    proto_max: Annotated[int, Field(ge=0, le=255, description="highest major this side speaks")]
    pid: Annotated[int, Field(ge=0, description="checked against the warden's table and the socket's peer")]
    role: Annotated[
        Literal["service", "client", "controller"],
        Field(description="service: started by the warden; controller: attached from outside"),
    ]
    version: Annotated[str, Field(max_length=40, description="package version, for people")]
    knobs: Annotated[list[KnobDeclaration], Field(max_length=256, description="what this service applies")] = []
    ready: Annotated[bool, Field(description="true when it was ready before this hello (kernel restart)")] = False
    holds: Annotated[list[KnobName], Field(max_length=64, description="knobs this controller wants to steer")] = []
    slot: Annotated[Name | None, Field(description="attached controller: the slot it steers in")] = None
    shadow: Annotated[bool, Field(description="attached controller: decide without power until promoted")] = False
    kind: Annotated[str, Field(max_length=MAX_KIND, description="of its configuration, for people")] = ""
    reason: Annotated[Text, Field(description="attached controller: why it comes, kept in the journal")] = ""
    fallback: Annotated[
        Fallback | None, Field(description="controller: what becomes of its knobs when it leaves; None: former")
    ] = None


Role = Literal["active", "standby", "shadow"]
"""active: works. standby: loaded, works when told. shadow: a controller that decides and has no power."""


class Welcome(Message):
    """Kernel to peer: you are registered. `boot` changes when the kernel was restarted."""

    KIND: ClassVar[str] = "welcome"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "proto": 1,
        "boot": "9f2c",
        "heartbeat_s": 0.5,
        "knobs": {"kl.coef": 0.2},
        "versions": {"kl.coef": 3},
    }
    proto: Annotated[int, Field(ge=0, le=255)]
    boot: Annotated[str, Field(max_length=32)]
    heartbeat_s: Annotated[float, Field(gt=0, description="interval the kernel expects, s")]
    knobs: Annotated[Flat, Field(description="current value of every knob this service declared")] = {}
    versions: Annotated[dict[str, Count], Field(description="version of each of these values")] = {}
    role: Role = "active"
    paused: Annotated[bool, Field(description="take no new work until a heartbeat's answer says otherwise")] = False


class Refused(Message):
    """Kernel or ledger to peer: not done, and why. Answers any request."""

    KIND: ClassVar[str] = "refused"
    EXAMPLE: ClassVar[dict[str, Any]] = {"code": "identity", "why": "rollout-0#2 is not a living child of this run"}
    code: Annotated[str, Field(max_length=40)]
    why: Text


class Wait(Part):
    """One thing a service is waiting for; every wait has a name and a deadline."""

    name: Annotated[str, Field(max_length=80)]
    left_s: Annotated[float | None, Field(description="s until its deadline; None: bounded by its peer's life")]


class Heartbeat(Message):
    """Service to kernel, from its main loop: proof of progress, not only of life."""

    KIND: ClassVar[str] = "heartbeat"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "progress": 812, "phase": "train", "phase_s": 60.0, "waits": [{"name": "batch", "left_s": 12.5}],
        "stats": {"step": 41, "tokens_per_s": 8123.0},
    }  # fmt: skip
    progress: Annotated[Count, Field(description="grows with every unit of real work")]
    failures: Annotated[Count, Field(description="grows with every one that came to nothing")] = 0
    ready: Annotated[bool, Field(description="loaded, taking work: dependents may start")] = False
    phase: Annotated[str | None, Field(max_length=40, description="declared long work, None when in the loop")] = None
    phase_s: Annotated[float | None, Field(gt=0, description="most seconds that phase may stay silent")] = None
    waits: Annotated[list[Wait], Field(max_length=64, description="everything it waits for now")]
    stats: Annotated[Flat, Field(description="a few numbers for `midflight ps`")]


class HeartbeatOk(Message):
    """Kernel to service. A new `boot` asks for a new hello; `seq` shows a subscriber what it may have missed."""

    KIND: ClassVar[str] = "heartbeat.ok"
    EXAMPLE: ClassVar[dict[str, Any]] = {"boot": "9f2c", "seq": 1204}
    boot: Annotated[str, Field(max_length=32)]
    seq: Annotated[Count, Field(description="number of the newest event")]
    role: Role = "active"
    paused: bool = False


class Drain(Message):
    """Kernel to service: take no new work, hand in what you hold, then leave with exit code 0."""

    KIND: ClassVar[str] = "drain"
    EXAMPLE: ClassVar[dict[str, Any]] = {"deadline_s": 10.0, "why": "midflight down"}
    deadline_s: Annotated[float, Field(ge=0, description="s until SIGTERM")]
    why: Text = ""


class PeerDown(Message):
    """Kernel to the ledger: this process is gone; its leases may return at once."""

    KIND: ClassVar[str] = "peer.down"
    EXAMPLE: ClassVar[dict[str, Any]] = {"peer": "rollout-0#1", "why": "exit -9"}
    peer: Identity
    why: Text


class StatusGet(Message):
    """Client to kernel: what is going on?"""

    KIND: ClassVar[str] = "status.get"
    EXAMPLE: ClassVar[dict[str, Any]] = {}


class ServiceStatus(Part):
    """One line of `midflight ps`."""

    name: Name
    generation: Count
    kind: Annotated[str, Field(max_length=MAX_KIND)]
    state: Annotated[str, Field(max_length=20)]
    pid: Count
    up_s: float
    seen_s: Annotated[float, Field(description="s since its last sign of life")]
    restarts: Count
    progress: Count
    phase: Annotated[str | None, Field(max_length=40)] = None
    waits: list[Wait] = []
    stats: Flat = {}
    cause: Annotated[str | None, Field(max_length=2000, description="why it last ended")] = None
    slot: Annotated[str, Field(max_length=64)] = ""
    role: Role = "active"
    paused: bool = False
    attached: Annotated[bool, Field(description="from outside: the warden does not restart it")] = False
    part: Annotated[str, Field(max_length=80, description="configuration that a swap brought, in RUN/parts")] = ""


class Status(Message):
    """Kernel to client: the run as the kernel sees it."""

    KIND: ClassVar[str] = "status"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "run_id": "demo-1a2b3c4d", "boot": "9f2c", "kernel_pid": 4711, "warden_pid": 4710, "seq": 12, "up_s": 3.5,
        "stopping": None, "services": [], "counters": {"ctl": 120},
    }  # fmt: skip
    run_id: Annotated[str, Field(max_length=80)]
    boot: Annotated[str, Field(max_length=32)]
    kernel_pid: Annotated[Count, Field(description="process id of the kernel")]
    warden_pid: Annotated[Count, Field(description="process id of the warden")]
    seq: Count
    up_s: Annotated[float, Field(description="s since this kernel started; a restarted one begins at 0")]
    stopping: Annotated[str | None, Field(max_length=200, description="why the run is ending, or None")]
    services: Annotated[list[ServiceStatus], Field(max_length=1024)]
    counters: Flat = {}


class RunStop(Message):
    """Client to kernel: end the run. drain finishes and checkpoints, stop skips the work in hand, kill is now."""

    KIND: ClassVar[str] = "run.stop"
    EXAMPLE: ClassVar[dict[str, Any]] = {"mode": "drain", "why": "Ctrl-C"}
    mode: Literal["drain", "stop", "kill"]
    why: Text


class Done(Message):
    """Answer to a request that needs no data back."""

    KIND: ClassVar[str] = "done"
    EXAMPLE: ClassVar[dict[str, Any]] = {"detail": "draining"}
    detail: Text = ""


class StateGet(Message):
    """To a service: hand over your state for a successor."""

    KIND: ClassVar[str] = "state.get"
    EXAMPLE: ClassVar[dict[str, Any]] = {}


class State(Message):
    """A service's state: JSON text under a schema name, so that a successor of another kind can refuse politely.

    Answers `state.get`; sent to a successor, it is answered `done` or `refused`.
    """

    KIND: ClassVar[str] = "state"
    EXAMPLE: ClassVar[dict[str, Any]] = {"schema_name": "kl/1", "json_text": '{"coef": 0.2}'}
    schema_name: Annotated[str, Field(max_length=64)]
    json_text: Annotated[str, Field(max_length=200_000)]


KINDS = (
    Hello, Welcome, Refused, Heartbeat, HeartbeatOk, Drain, PeerDown, StatusGet, Status, RunStop, Done,
    StateGet, State,
)  # fmt: skip
