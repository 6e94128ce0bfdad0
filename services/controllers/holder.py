"""What controllers have in common: they hold knobs, hear the learner's metrics, and set what their law says.

Takes   `event` (topic metrics: what was measured, once a training step), `knob.granted`.
Sends   `knob.acquire`, `knob.set` with the epoch it was granted; its state as an event, so that a successor goes on.
Stores  nothing on disk; the law's state is in the journal.
Dies    any time: its knobs hold their last values, and its successor takes over from the last journaled state.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import structlog

from midflight.kernel.actor import Actor
from midflight.kernel.follow import Follow
from midflight.kernel.mail import Bus
from midflight.kernel.node import Letter, handles
from midflight.messages.base import Scalar
from midflight.messages.control import Refused
from midflight.messages.events import Event
from midflight.messages.knobs import KnobAcquire, KnobGranted, KnobOk, KnobSet
from midflight.messages.sockets import Role
from midflight.messages.wire import Received

ANSWER_S = 5.0
RETRY_S = 2.0
PATIENCE = 5
"""Steps in a row without a metric after which people are told."""
LOST = ("owner", "epoch", "unknown")
"""Codes of a refusal that says the knob was taken from us: it is asked for again. Any other is about the value."""


class Law(Protocol):
    """A control law: a pure state machine."""

    def state_dict(self) -> dict[str, object]:
        """Everything it goes on from, as plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from there. Raises ValueError, changing nothing."""
        ...


class Holder(Actor):
    """One law, one or more knobs. Subclasses say what the law makes of a step's metrics."""

    PORTS: ClassVar[dict[str, Role]] = {"ctl": "dealer", "ev": "sub"}
    SCHEMA: ClassVar[str]

    def __init__(self, identity: str, bus: Bus, law: Law, knobs: Sequence[str], metrics: Sequence[str]) -> None:
        super().__init__(identity, bus)
        self.law, self.held, self.metrics = law, tuple(knobs), tuple(metrics)
        self.follow = Follow(self.mail, self._take)
        self.epochs: dict[str, int] = {}
        self._refused: frozenset[str] = frozenset()
        self._log = structlog.get_logger()
        self._name = ",".join(self.held)
        self._next_ask = 0.0
        self._missed = 0

    def decide(self, measured: Mapping[str, float], step: int) -> Mapping[str, float]:
        """Take the metrics of a training step; -> a value for every knob held."""
        raise AssertionError("a controller decides")

    def reason(self, measured: Mapping[str, float], step: int) -> str:
        """Why, in a few words, for the journal and `midflight get`."""
        return " ".join(f"{name} {value:.4g}" for name, value in measured.items()) + f" at step {step}"

    def notes(self) -> Mapping[str, Scalar]:
        """What else a decision is journaled with, and `midflight ps` shows."""
        return {}

    def brief_state(self) -> dict[str, object]:
        """What a successor goes on from, journaled with every decision."""
        return self.law.state_dict()

    def on_welcome(self) -> None:
        """A new kernel granted nothing yet."""
        self.epochs.clear()
        self._next_ask = 0.0

    def export_state(self) -> tuple[str, dict[str, Any]]:
        """The law's whole state."""
        return self.SCHEMA, self.law.state_dict()

    def import_state(self, schema: str, state: dict[str, Any]) -> None:
        """Go on where another law of the same kind stopped."""
        if schema != self.SCHEMA:
            raise ValueError(f"this controller continues {self.SCHEMA}, not {schema!r}")
        self.law.load_state_dict(state)

    def work(self, now: float) -> bool:
        """Read the stream to its end, then ask for the knobs until they are ours: old metrics are decided once."""
        self.follow.catch_up(self.newest_event)
        current = 0 < self.newest_event <= self.follow.last
        if current and now >= self._next_ask and len(self.epochs) < len(self.held):
            self._next_ask = now + RETRY_S
            for knob in self.held:
                if knob not in self.epochs:
                    self.mail.request("ctl", KnobAcquire(knob=knob), ANSWER_S, self._granted, lambda why: None)
        return False

    @handles(Event)
    def _on_event(self, message: Event, letter: Letter) -> None:
        self.follow.live(message)

    def _take(self, event: Event) -> None:
        if event.body.get("knob") in self.held and event.body.get("knob") not in self.epochs:
            self._next_ask = 0.0  # it has been declared, released or taken: perhaps it can be had now
        if event.topic == "controller" and event.body.get("knob") == self._name:
            self._resume(event)
        measured = {name: value for name in self.metrics if isinstance(value := event.body.get(name), int | float)}
        if event.topic == "metrics" and event.step is not None:
            if len(measured) == len(self.metrics):
                self.progress += 1
                self._missed = 0
                self._decide(measured, event.step)
            else:
                self._miss(sorted(set(self.metrics) - set(measured)), event.step)

    def _miss(self, missing: Sequence[str], step: int) -> None:
        """A metric that keeps not coming: most likely a slip of the pen, and nothing is steered meanwhile."""
        self._missed += 1
        self.stats = {"waiting": ", ".join(missing)}
        if self._missed == PATIENCE:
            text = f"{PATIENCE} steps came without {', '.join(missing)}: nothing is steered by it (step {step})"
            self._log.warning("metrics missing", metrics=missing, step=step)
            self.event("note", {"level": "warning", "text": f"{self.identity}: {text}"[:900]})

    def _resume(self, event: Event) -> None:
        """A predecessor's state: take it over, unless it is our own decision coming back."""
        state = event.body.get("state")
        if event.source != self.identity and isinstance(state, str):
            self.law.load_state_dict(json.loads(state))

    def _decide(self, measured: Mapping[str, float], step: int) -> None:
        if not self.epochs:
            return
        values = self.decide(measured, step)
        state = json.dumps(self.brief_state())
        body: dict[str, Scalar] = {"knob": self._name, "at_step": step, **measured, "state": state}
        notes = self.notes()
        self.event("controller", {**body, **notes, **{f"value/{knob}": value for knob, value in values.items()}}, step)
        why = self.reason(measured, step)
        for knob, value in values.items():
            if knob in self.epochs:
                message = KnobSet(knob=knob, value=value, epoch=self.epochs[knob], reason=why)
                self.mail.request("ctl", message, ANSWER_S, self._was_set(knob), lambda why: None, name="knob.set")
        self.stats = {**{name: round(value, 5) for name, value in (*values.items(), *measured.items())}, **notes}

    def _granted(self, received: Received) -> None:
        answer = received.message
        if isinstance(answer, KnobGranted):
            self.epochs[answer.knob] = answer.epoch
        elif isinstance(answer, Refused):
            self.stats = {"waiting": f"{self._name} ({answer.code})"}

    def _was_set(self, knob: str) -> Callable[[Received], None]:
        def then(received: Received) -> None:
            answer = received.message
            why = answer.why if isinstance(answer, Refused) and answer.code not in LOST else ""
            if why and knob not in self._refused:
                self._log.warning("value refused", knob=knob, why=why)
            self._refused = self._refused | {knob} if why else self._refused - {knob}
            if not isinstance(answer, KnobOk) and not why:
                self.epochs.pop(knob, None)
                self._next_ask = self.bus.now() + RETRY_S

        return then
