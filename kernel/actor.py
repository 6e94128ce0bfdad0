"""The runtime every service stands on: hello, heartbeats, phases, waits, knobs, events, drain.

A service subclasses `Actor`, declares the ports it connects to, and overrides a few hooks:

    start()            after the kernel's welcome; may take long inside `phase(...)`; then the actor is ready
    work(now) -> bool   own work in small pieces; True asks for another turn at once
    idle() -> bool     nothing held, so a drain may end
    apply_knob(name, value) -> step at which it takes effect

Heartbeats come from the main loop only, with a progress counter: a service that hangs falls silent, and one that must
be silent for long declares a phase with its own deadline first.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import structlog

from midflight import __version__
from midflight.messages.base import Scalar
from midflight.messages.control import (
    Done,
    Drain,
    Heartbeat,
    HeartbeatOk,
    Hello,
    Refused,
    Role,
    State,
    StateGet,
    Wait,
    Welcome,
)
from midflight.messages.envelope import MAJOR
from midflight.messages.events import Post, PostOk
from midflight.messages.knobs import Fallback, KnobApplied, KnobApply, KnobDeclaration
from midflight.messages.sockets import Role as SocketRole

from .mail import Bus, OutboxFull
from .mistake import UserMistake
from .node import Letter, Node, handles

HELLO_RETRY_S = 1.0
LATER_S = 0.1
PATIENCE = 20.0
MOST_STATE = 200_000
"""Longest state that can be handed over, characters of JSON."""
SILENCE_S = 30.0
"""Least time that a phase known to be short may be silent, in seconds."""


@dataclass(frozen=True, slots=True)
class Attached:
    """A controller that joined a run from outside: the slot it steers in."""

    slot: str
    reason: str = ""
    warden: int | None = None
    """A descriptor that is readable when the run's warden has ended."""


class Actor(Node):
    """A service process as seen from inside."""

    PORTS: ClassVar[dict[str, SocketRole]] = {"ctl": "dealer"}

    def __init__(self, identity: str, bus: Bus) -> None:
        super().__init__(identity, bus)
        self.boot: str | None = None
        self.started = False
        self.ready = False
        self.draining: str | None = None
        self.progress = self.failures = 0
        self.stats: dict[str, Scalar] = {}
        self.newest_event = 0
        self.role: Role = "active"
        """standby: loaded, and to work only when this changes. shadow: a controller without power."""
        self.paused = False
        """Take no new work; what is in hand is finished."""
        self.kind = ""
        """Of its configuration, for people."""
        self.attached: Attached | None = None
        """Set when it was not started by the warden."""
        self._heartbeat_s = 0.5
        self.next_beat = 0.0
        self._phase: tuple[str, float] | None = None
        self._phases: dict[str, float] = {}
        """Longest time each phase has taken, in seconds."""
        self._waits: dict[str, float | None] = {}
        self._posts = 0
        self._applied: dict[str, KnobApplied] = {}

    # hooks

    def start(self) -> None:
        """Load what the service needs."""

    def prepared(self) -> bool:
        """Whether it may count as ready, once started; asked every turn until it is."""
        return True

    def work(self, now: float) -> bool:
        """One small piece of own work."""
        return False

    def idle(self) -> bool:
        """Whether a draining service may leave."""
        return True

    def knobs(self) -> tuple[KnobDeclaration, ...]:
        """The knobs this service applies."""
        return ()

    def apply_knob(self, name: str, value: Scalar) -> int:
        """Use a new value; -> the step from which it is in force. Raises ValueError for one that it cannot use."""
        raise KeyError(name)

    def holds(self) -> tuple[str, ...]:
        """The knobs a controller steers, or would."""
        return ()

    def fallback(self) -> Fallback | None:
        """What becomes of a controller's knobs when it leaves; None: whoever ruled before has them, else they hold."""
        return None

    def on_role(self) -> None:
        """`role` or `paused` has changed."""

    def export_state(self) -> tuple[str, dict[str, Any]]:
        """(schema name, plain values) that a successor can go on from; an empty name means there is nothing."""
        return "", {}

    def import_state(self, schema: str, state: dict[str, Any]) -> None:
        """Go on from a predecessor's state. Raises ValueError for a schema this service does not know."""
        raise ValueError(f"{self.identity} takes no state (offered {schema!r})")

    def ports(self) -> dict[str, SocketRole]:
        """The ports this process opens, and as what."""
        return self.PORTS

    def close(self) -> None:
        """Last words before the process exits; children are ended here."""

    def works(self) -> bool:
        """Whether `work` is called: not in a standby, nor in a paused service before it is asked to leave."""
        return self.role != "standby" and (not self.paused or self.draining is not None)

    # what subclasses call

    def event(self, topic: str, body: Mapping[str, Scalar], step: int | None = None) -> None:
        """Put something into the run's event stream; journaled by the kernel exactly once. Numbers that are not finite
        are left out: no message holds one.

        When the kernel has acknowledged nothing for so long that the outbox is full, the event is dropped and counted:
        telling is no reason to stop working.
        """
        finite = {name: value for name, value in body.items() if _finite(value)}
        try:
            self.mail.post(
                "ctl", ("event", self._posts + 1), Post(key=self._posts + 1, topic=topic, step=step, body=finite)
            )
        except OutboxFull:
            self.mail.counters["events_dropped"] += 1
        else:
            self._posts += 1

    @contextmanager
    def phase(self, name: str, most_s: float) -> Iterator[None]:
        """Declare work that may silence the main loop for up to `most_s` seconds.

        That is a guess for its first time. From then on PATIENCE times the longest so far is enough, so that a process
        that stands still in a short phase is found soon.
        """
        longest = self._phases.get(name)
        limit = most_s if longest is None else min(most_s, max(SILENCE_S, PATIENCE * longest))
        outer, self._phase = self._phase, (name, limit)
        self.beat()
        began = self.bus.now()
        try:
            yield
        finally:
            self._phases[name] = max(longest or 0.0, self.bus.now() - began)
            self._phase = outer
            self.beat()

    @property
    def in_phase(self) -> bool:
        """Whether a phase is declared."""
        return self._phase is not None

    def waiting(self, name: str, left_s: float | None) -> None:
        """Show a wait in `midflight ps`; `left_s` None means it is bounded by the life of its peer."""
        self._waits[name] = None if left_s is None else self.bus.now() + left_s

    def waited(self, name: str) -> None:
        """The wait is over."""
        self._waits.pop(name, None)

    def beat(self) -> None:
        """Send a heartbeat now; called by the loop, and by long work between its pieces."""
        now = self.bus.now()
        self.next_beat = now + self._heartbeat_s
        waits = [(name, end if end is None else end - now) for name, end in self._waits.items()]
        waits += self.mail.waits()
        self.mail.send(
            "ctl",
            Heartbeat(
                progress=self.progress,
                failures=self.failures,
                ready=self.ready,
                phase=self._phase[0] if self._phase else None,
                phase_s=self._phase[1] if self._phase else None,
                waits=[Wait(name=name, left_s=left) for name, left in waits[:64]],
                stats={name: value if _finite(value) else str(value) for name, value in self.stats.items()},
            ),
        )

    # the loop's side

    def hears(self, kind: str) -> bool:
        """Until `start` is done only the runtime's own kinds; whatever matters is repeated by its sender."""
        return self.started or kind in Actor.HANDLERS

    def on_trace(self, trace: str | None) -> None:
        """Log records carry the trace of the message being handled."""
        if trace is None:
            structlog.contextvars.unbind_contextvars("trace")
        else:
            structlog.contextvars.bind_contextvars(trace=trace)

    def on_turn(self, now: float) -> float:
        """Heartbeat, then own work."""
        if self.boot is None:
            if now >= self.next_beat:
                self._hello(now)
            return LATER_S
        if not self.started:
            self.start()
            self.started = True
            self.beat()
        if not self.ready and self.prepared():
            self.ready = True
            self.beat()
        if now >= self.next_beat:
            self.beat()
        busy = self.work(now) if self.works() else False
        if self.draining and not busy and self.idle() and not self.mail.unsettled():
            self.leave(0)
        return 0.0 if busy else min(LATER_S, max(self.next_beat - self.bus.now(), 0.001))

    def watches(self) -> dict[int, Callable[[], None]]:
        """An attached controller ends with its run."""
        warden = self.attached.warden if self.attached else None
        return {} if warden is None else {warden: lambda: self.leave(0)}

    def _hello(self, now: float) -> None:
        self.next_beat = now + HELLO_RETRY_S
        hello = Hello(
            proto_min=MAJOR,
            proto_max=MAJOR,
            pid=os.getpid(),
            role="controller" if self.attached else "service",
            version=__version__,
            knobs=list(self.knobs()),
            ready=self.ready,
            holds=list(self.holds()),
            slot=self.attached.slot if self.attached else None,
            reason=self.attached.reason if self.attached else "",
            shadow=self.role == "shadow",
            kind=self.kind,
            fallback=self.fallback(),
        )
        self.mail.send("ctl", hello)

    @handles(Welcome)
    def _on_welcome(self, message: Welcome, letter: Letter) -> None:
        self.boot, self._heartbeat_s = message.boot, message.heartbeat_s
        self._stand(message.role, message.paused)
        self.mail.resend("ctl")
        for name, value in message.knobs.items():
            self._apply(name, value, message.versions.get(name, 0))
        self.on_welcome()

    def on_welcome(self) -> None:
        """After each welcome (first start, and again after a kernel restart)."""

    @handles(HeartbeatOk)
    def _on_heartbeat_ok(self, message: HeartbeatOk, letter: Letter) -> None:
        self.newest_event = message.seq
        if message.boot != self.boot:  # a kernel that does not know us yet cannot say what we are
            self._hello(self.bus.now())
        else:
            self._stand(message.role, message.paused)

    def _stand(self, role: Role, paused: bool) -> None:
        if self.role == "standby" and role != "standby":
            self.progress = self.failures = 0
        if (role, paused) != (self.role, self.paused):
            self.role, self.paused = role, paused
            self.on_role()

    @handles(Refused)
    def _on_refused(self, message: Refused, letter: Letter) -> None:
        if message.code == "identity":  # fenced: a successor owns this name
            self.leave(4)
        elif message.code == "knob" or (self.attached and message.code in ("taken", "full")):
            raise UserMistake(message.why)

    @handles(PostOk)
    def _on_post_ok(self, message: PostOk, letter: Letter) -> None:
        self.mail.settle(("event", message.key))

    @handles(Drain)
    def _on_drain(self, message: Drain, letter: Letter) -> None:
        if self.draining is None:
            self.draining = message.why or "asked to"
            self.on_drain()

    def on_drain(self) -> None:
        """Stop taking new work."""

    @handles(KnobApply)
    def _on_knob_apply(self, message: KnobApply, letter: Letter) -> None:
        self._apply(message.knob, message.value, message.version)

    def _apply(self, name: str, value: Scalar, version: int) -> None:
        """Use a value unless a newer one is known; answer either way, for the answer may have been lost."""
        known = self._applied.get(name)
        if known is None or version > known.version:
            try:
                known = KnobApplied(knob=name, version=version, step=self.apply_knob(name, value))
            except ValueError as error:
                known = KnobApplied(
                    knob=name, version=version, step=known.step if known else 0, refused=str(error)[:500]
                )
            self._applied[name] = known
        self.mail.send("ctl", known)

    @handles(StateGet)
    def _on_state_get(self, message: StateGet, letter: Letter) -> None:
        schema, state = self.export_state()
        text = json.dumps(state)
        if len(text) > MOST_STATE:
            letter.reply(
                Refused(code="state", why=f"the state of {self.identity} is too large: {len(text)} characters")
            )
        else:
            letter.reply(State(schema_name=schema, json_text=text))

    @handles(State)
    def _on_state(self, message: State, letter: Letter) -> None:
        try:
            self.import_state(message.schema_name, json.loads(message.json_text))
        except (ValueError, KeyError, TypeError) as error:
            letter.reply(Refused(code="state", why=str(error)))
        else:
            letter.reply(Done())


def _finite(value: Scalar) -> bool:
    """Whether a message can hold it."""
    return not isinstance(value, float) or math.isfinite(value)
