"""One incarnation of a service, `name#generation`, and what its signs of life say about it.

Life of an owned instance:

    starting -> loading -> ready -> running -> draining -> stopping -> stopped | backoff | failed
     (spawned)   (hello)    (ready)  (progress)  (asked)    (signalled)  (exit decided)

Before ready one deadline counts, `start_timeout_s` after the spawn; afterwards the silence of the main loop, at most
`heartbeat_timeout_s`. A declared phase replaces either by its own limit on silence for as long as it lasts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from midflight.messages.base import Scalar
from midflight.messages.control import Role
from midflight.messages.knobs import Fallback, KnobDeclaration

State = Literal["starting", "loading", "ready", "running", "draining", "stopping", "stopped", "backoff", "failed"]
LIVE: frozenset[State] = frozenset({"starting", "loading", "ready", "running", "draining", "stopping"})
UP: frozenset[State] = frozenset({"ready", "running"})
IDLE_S = 3600.0
"""Who lives for so long without having done anything had nothing to do."""


@dataclass(slots=True)
class Instance:
    """What the kernel knows of one incarnation. All times are monotonic seconds."""

    name: str
    generation: int
    slot: str
    kind: str
    heartbeat_timeout_s: float
    owned: bool = True
    state: State = "stopped"
    pid: int | None = None
    started: float = 0.0
    last_seen: float = 0.0
    deadline: float = 0.0
    """Of the start while starting or loading; of the current step of the stop ladder while draining or stopping."""
    phase: str = ""
    phase_since: float = 0.0
    phase_deadline: float = 0.0
    progress: int = 0
    failures: int = 0
    session: str = ""
    boot: str = ""
    """The kernel boot id it has said hello to."""
    cause: str = ""
    """Why it is stopping, or why it ended."""
    rung: int = -1
    """Current step of the stop ladder, -1 for none."""
    rung_since: float = 0.0
    part: str = ""
    """Which configuration it was started with; empty: its slot's in the topology."""
    standby: bool = False
    """The successor in a swap that is not yet in force."""
    shadow: bool = False
    """A controller without power."""
    greeted: bool = field(default=False, compare=False)
    """Whether it has said hello to this incarnation of the kernel."""
    holds: tuple[str, ...] = ()
    """Knobs it steers, or would."""
    fallback: Fallback | None = None
    """What becomes of them when it leaves."""
    declares: tuple[KnobDeclaration, ...] = ()
    """Knobs it applies."""
    waits: tuple[tuple[str, float | None], ...] = ()
    stats: dict[str, Scalar] = field(default_factory=dict)

    @property
    def role(self) -> Role:
        """What it is told to be."""
        return "standby" if self.standby else "shadow" if self.shadow else "active"

    @property
    def identity(self) -> str:
        """`name#generation`."""
        return f"{self.name}#{self.generation}"

    @property
    def live(self) -> bool:
        """Whether a process (or a session) of this incarnation may still exist."""
        return self.state in LIVE

    def applies(self, knob: str) -> bool:
        """Whether it has said that it applies this knob."""
        return any(one.name == knob for one in self.declares)

    def barren(self, now: float) -> bool:
        """Whether it has ended without having done any of its work."""
        return not self.progress and now - self.started < IDLE_S

    def overdue(self, now: float) -> str:
        """Why it counts as hung at `now`, or the empty string."""
        if self.state not in LIVE or self.state == "stopping":
            return ""
        if self.phase:
            limit = self.phase_deadline - self.last_seen
            return f"silent beyond the {limit:.1f} s of its phase {self.phase}" if now > self.phase_deadline else ""
        if self.state in ("starting", "loading"):
            missing = "hello" if self.state == "starting" else "ready"
            took = now - self.started
            return f"no {missing} within {took:.1f} s of its start" if now > self.deadline else ""
        silent = now - self.last_seen
        limit = self.heartbeat_timeout_s
        return f"silent for {silent:.1f} s (limit {limit:g} s)" if silent > limit else ""

    def heard(self, now: float, phase: str, phase_s: float) -> None:
        """Any sign of life. `phase` is the declared phase, empty for none; `phase_s` its limit on silence.

        The time spent in a phase before ready is added to the start deadline.
        """
        self.last_seen = now
        if phase != self.phase:
            if self.phase and self.state == "loading":
                self.deadline += now - self.phase_since
            self.phase, self.phase_since = phase, now
        if phase:
            self.phase_deadline = now + phase_s

    def time_back(self, gap: float, now: float) -> None:
        """Nobody listened for `gap` seconds before `now`: move every deadline by as much."""
        self.last_seen = min(self.last_seen + gap, now)
        self.deadline += gap
        self.phase_deadline += gap
        self.phase_since = min(self.phase_since + gap, now)
        self.rung_since = min(self.rung_since + gap, now)

    def dump(self) -> dict[str, Any]:
        """Return what a restarted kernel needs, as plain values; the rest is said again in the hello."""
        skip = ("waits", "stats", "greeted", "holds", "fallback", "declares")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skip}

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Self:
        """Undo `dump`."""
        return cls(**state)
