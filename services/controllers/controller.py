"""What controllers have in common: they hold knobs, hear the learner's metrics, and set what their law says.

Takes   `event` (topic metrics: what was measured, once a training step; topic knob: what is in force), `knob.granted`.
Sends   `knob.acquire`, `knob.set` with the epoch it was granted; every decision as an event, with its state.
Stores  nothing on disk; the law's state is in the journal.
Dies    any time: its knobs hold their last values, or fall to whoever waits for them, and its successor goes on from
        the last journaled state.

Without power (a shadow, a standby, one whose knob a person has taken) it decides all the same, each time from the value
in force, and sets nothing; the moment it is granted the knob it sets its newest decision. What it decides depends on
the order of the event stream alone, and what came to it otherwise is journaled with the number of the event before it:
`midflight replay` gives the same decisions again.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import structlog

from midflight.kernel.actor import Actor
from midflight.kernel.follow import Follow
from midflight.kernel.mail import Bus
from midflight.kernel.node import Letter, handles
from midflight.kernel.settings import Settings
from midflight.kernel.spec import knob_prefix, live_knobs, with_values
from midflight.messages.base import Scalar
from midflight.messages.control import Refused
from midflight.messages.events import Event
from midflight.messages.knobs import Fallback, KnobAcquire, KnobDeclaration, KnobGranted, KnobOk, KnobSet
from midflight.messages.sockets import Role
from midflight.messages.wire import Received

from .law import Law, Stateless
from .spec import ControllerSpec

ANSWER_S = 5.0
RETRY_S = 2.0
PATIENCE = 5
"""Steps in a row without a metric after which people are told."""
LOST = ("owner", "epoch", "unknown")
"""Codes of a refusal that says the knob was taken from us: it is asked for again. Any other is about the value."""


class Controller(Actor):
    """One law, one or more knobs. A subclass names its law and says what that makes of a step's metrics."""

    PORTS: ClassVar[dict[str, Role]] = {"ctl": "dealer", "ev": "sub"}
    SCHEMA: ClassVar[str] = ""
    """Names the form of the law's state; only a controller of the same schema can take it over."""

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        super().__init__(identity, bus)
        self.settings = settings
        self.config = cast(ControllerSpec, settings.config)
        self.law: Law = self.make_law()
        self.follow = Follow(self.mail, self.take)
        self.live = False
        """Whether it has read what was before it: from then on it decides."""
        self.epochs: dict[str, int] = {}
        self._actual: dict[str, tuple[Scalar, Scalar]] = {}
        """Value in force and its author, of every knob it steers."""
        self._owners: dict[str, Scalar] = {}
        """Who has it, as the stream tells."""
        self._past: dict[bool, tuple[int, str]] = {}
        """Step and state of a predecessor's last decision: one of our name (True), the active one's (False)."""
        self._unsent: dict[str, tuple[float, str]] = {}
        """Newest value and reason of every knob, until the kernel has taken it."""
        self._step = 0
        self._refused: frozenset[str] = frozenset()
        self._log = structlog.get_logger()
        self._next_ask = 0.0
        self._missed = 0
        self._was_paused = False
        self._declared: tuple[KnobDeclaration, ...] = ()

    # what subclasses say

    def make_law(self) -> Law:
        """The control law with its parameters out of `self.config`."""
        return Stateless()

    def decide(self, measured: Mapping[str, float], step: int) -> Mapping[str, float]:
        """Take the metrics of a training step; -> a value for every knob it steers."""
        raise AssertionError("a controller decides")

    def along(self, field: str, value: Scalar) -> Mapping[str, Scalar]:
        """What changes when a parameter does: others may have to follow."""
        return {field: value}

    def track(self, values: Mapping[str, float]) -> None:
        """Begin the next decision from these values, which somebody else has put in force."""

    def reason(self, measured: Mapping[str, float], step: int) -> str:
        """Why, in a few words, for the journal and `midflight get`."""
        return " ".join(f"{name} {value:.4g}" for name, value in measured.items()) + f" at step {step}"

    def notes(self) -> Mapping[str, Scalar]:
        """What else a decision is journaled with, and `midflight ps` shows."""
        return {}

    def brief_state(self) -> dict[str, object]:
        """What a successor goes on from, journaled with every decision."""
        return self.law.state_dict()

    # the runtime's hooks

    def holds(self) -> tuple[str, ...]:
        """See `ControllerSpec.steers`."""
        return self.config.steers

    def fallback(self) -> Fallback | None:
        """As configured."""
        return self.config.fallback

    def knobs(self) -> tuple[KnobDeclaration, ...]:
        """Its parameters; what is said again to another kernel is what was said first."""
        self._declared = self._declared or live_knobs(self.config, self.prefix)
        return self._declared

    @property
    def prefix(self) -> str:
        """What the names of its parameters begin with."""
        return self.settings.name if self.attached else self.settings.slot

    def apply_knob(self, name: str, value: Scalar) -> int:
        """A parameter has a new value. Raises ValueError for one that cannot be used."""
        self.retune(name.removeprefix(knob_prefix(self.prefix)), value)
        return self._step + 1

    def retune(self, field: str, value: Scalar) -> None:
        """Another value for a field of the configuration; the law goes on with it from where it is."""
        config = with_values(self.config, self.along(field, value))
        if config != self.config:
            former, law = self.config, self.law
            self.config = config
            try:
                self.law = self.make_law()
                self.law.load_state_dict(law.state_dict())
            except ValueError:
                self.config, self.law = former, law
                raise
            self.event("controller.param", {"field": field, "value": value, "after": self.follow.last})

    def export_state(self) -> tuple[str, dict[str, Any]]:
        """The law's whole state."""
        return self.SCHEMA, self.law.state_dict()

    def import_state(self, schema: str, state: dict[str, Any]) -> None:
        """Go on where another law of the same kind stopped."""
        if not self.SCHEMA or schema != self.SCHEMA:
            raise ValueError(f"this controller continues {self.SCHEMA or 'nothing'}, not {schema!r}")
        self.law.load_state_dict(state)
        body: dict[str, Scalar] = {"schema": schema, "state": json.dumps(state), "after": self.follow.last}
        self.event("controller.took", body)

    def prepared(self) -> bool:
        """It has read what was before it."""
        return self.live

    def on_welcome(self) -> None:
        """A new kernel granted nothing yet."""
        self.epochs.clear()
        self._next_ask = 0.0

    def on_role(self) -> None:
        """Power may have come; a pause is part of what the decisions depend on."""
        self._next_ask = 0.0
        if self.paused != self._was_paused:
            self._was_paused = self.paused
            self.event("controller.paused", {"paused": self.paused, "after": self.follow.last})

    def works(self) -> bool:
        """Without power and paused too: it reads on."""
        return True

    def work(self, now: float) -> bool:
        """Read the stream to its end, then ask for the knobs until they are ours: old metrics are decided once."""
        self.follow.catch_up(self.newest_event)
        if not self.live and 0 < self.newest_event <= self.follow.last:
            self.go_live()
        if self.live and self.role == "active" and now >= self._next_ask and len(self.epochs) < len(self.holds()):
            self._next_ask = now + RETRY_S
            for knob in self.holds():
                if knob not in self.epochs:
                    self.mail.request(
                        "ctl",
                        KnobAcquire(knob=knob, fallback=self.config.fallback),
                        ANSWER_S,
                        self._granted,
                        lambda why: None,
                    )
        return False

    def go_live(self) -> None:
        """Everything before is read: take up a predecessor's state and say so."""
        own, other = self._past.get(True), self._past.get(False)
        if state := own if own and (other is None or own[0] >= other[0] - 1) else other:
            self.law.load_state_dict(json.loads(state[1]))
        self.live = True
        body: dict[str, Scalar] = {"slot": self.settings.slot, "standing": self.role, "kind": self.config.kind}
        body |= {"schema": self.SCHEMA, "params": self.config.model_dump_json(), "after": self.follow.last}
        body["python_path"] = json.dumps(self.settings.python_path)
        self.event("controller.joined", body)

    # the stream

    @handles(Event)
    def _on_event(self, message: Event, letter: Letter) -> None:
        self.follow.live(message)

    def take(self, event: Event) -> None:
        """The next event of the run, in order; a law may be slow, and its signs of life go on."""
        if self.started and self.bus.now() >= self.next_beat:
            self.beat()
        match event.topic:
            case "metrics":
                self._measure(event)
            case "controller":
                self._note_past(event)
            case "knob" | "knob.granted" | "knob.released" | "knob.applied":
                self._note_knob(event)
            case "run.state" if self.attached:
                self.leave(0)

    def _note_past(self, event: Event) -> None:
        body, own = event.body, event.source.partition("#")[0] == self.settings.name
        same = body.get("slot") == self.settings.slot and body.get("schema") == self.SCHEMA != ""
        if not self.live and same and (own or body.get("standing") == "active"):
            self._past[own] = (int(cast(int, body["at_step"])), str(body["state"]))

    def _note_knob(self, event: Event) -> None:
        knob = str(event.body.get("knob"))
        if knob not in self.holds():
            return
        if event.topic == "knob":
            self._actual[knob] = (event.body["value"], event.body["author"])
            return
        if event.topic == "knob.applied":  # it is there, perhaps only now
            self._next_ask = self._next_ask if knob in self.epochs else 0.0
            return
        self._owners[knob] = event.body.get("owner")
        if self._owners[knob] != self.identity:
            self.epochs.pop(knob, None)
            self._next_ask = 0.0  # it has been released or taken: perhaps it can be had now

    def _measure(self, event: Event) -> None:
        measured = {name: value for name in self.config.reads if isinstance(value := event.body.get(name), int | float)}
        if event.step is None or not self.live or self.paused:
            return
        self._step = event.step
        if len(measured) == len(self.config.reads):
            self._missed = 0
            self._decide(measured, event.step)
        else:
            self._miss(sorted(set(self.config.reads) - set(measured)), event.step)

    def _miss(self, missing: Sequence[str], step: int) -> None:
        """A metric that keeps not coming: most likely a slip of the pen, and nothing is steered meanwhile."""
        self._missed += 1
        self.stats = {"waiting": ", ".join(missing)}
        if self._missed == PATIENCE:
            text = f"{PATIENCE} steps came without {', '.join(missing)}: nothing is steered by it (step {step})"
            self._log.warning("metrics missing", metrics=missing, step=step)
            self.event("note", {"level": "warning", "text": f"{self.identity}: {text}"[:900]})

    # decisions

    def _decide(self, measured: Mapping[str, float], step: int) -> None:
        foreign = {
            knob: float(value)
            for knob, (value, author) in self._actual.items()
            if (author != self.identity or self._owners.get(knob) != self.identity) and isinstance(value, int | float)
        }
        if foreign:
            self.track(foreign)
        values, why = self._checked(self.decide(measured, step)), self.reason(measured, step)
        body: dict[str, Scalar] = {"slot": self.settings.slot, "standing": self.standing, "schema": self.SCHEMA}
        body |= {"knob": ",".join(self.holds()), "at_step": step, "reason": why, **measured}
        body["state"] = json.dumps(self.brief_state())
        notes = self.notes()
        self.event("controller", {**body, **notes, **{f"value/{knob}": value for knob, value in values.items()}}, step)
        self._unsent = {knob: (value, why) for knob, value in values.items()}
        self._send()
        if self.standing != "active":
            self.progress += 1
        shown = {**values, **measured, **notes}
        self.stats = {name: float(f"{v:.5g}") if isinstance(v, float) else v for name, v in shown.items()}

    def _checked(self, values: Mapping[str, float]) -> Mapping[str, float]:
        """A finite number for every knob it steers. Raises ValueError that names what is wrong."""
        who = f"{type(self).__name__}.decide"
        if set(values) != set(self.holds()):
            told, wanted = ", ".join(sorted(values)) or "nothing", ", ".join(self.holds())
            raise ValueError(f"{who} returned values for {told}; it steers {wanted}")
        for knob, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{who} returned {value!r} for {knob}: want a finite number")
        return values

    @property
    def standing(self) -> str:
        """What a decision is journaled as: without all its knobs a controller has no power."""
        powerful = all(knob in self.epochs for knob in self.holds())
        return "active" if powerful else "standby" if self.role == "standby" else "shadow"

    def _send(self) -> None:
        """Set what is decided, as far as the knobs are ours."""
        for knob, (value, why) in self._unsent.items():
            if knob in self.epochs:
                message = KnobSet(knob=knob, value=value, epoch=self.epochs[knob], reason=why)
                then = self._was_set(knob, (value, why))
                self.mail.request("ctl", message, ANSWER_S, then, lambda why: None, name="knob.set")

    @handles(KnobGranted)
    def _on_granted(self, message: KnobGranted, letter: Letter) -> None:
        """It was promoted, or a knob fell back to it: its newest decision is in force at once."""
        if message.epoch > self.epochs.get(message.knob, -1):
            self.epochs[message.knob] = message.epoch
            self._send()

    def _granted(self, received: Received) -> None:
        answer = received.message
        if isinstance(answer, KnobGranted):
            self.epochs[answer.knob] = answer.epoch
            self._send()
        elif isinstance(answer, Refused):
            self.stats = {"waiting": f"{','.join(self.holds())} ({answer.code})"}

    def _was_set(self, knob: str, sent: tuple[float, str]) -> Callable[[Received], None]:
        def then(received: Received) -> None:
            answer = received.message
            why = answer.why if isinstance(answer, Refused) and answer.code not in LOST else ""
            if why and knob not in self._refused:
                self._log.warning("value refused", knob=knob, why=why)
            self._refused = self._refused | {knob} if why else self._refused - {knob}
            self.progress += isinstance(answer, KnobOk)  # in power, a decision that is refused is none
            if (isinstance(answer, KnobOk) or why) and self._unsent.get(knob) == sent:
                del self._unsent[knob]
            elif isinstance(answer, Refused) and not why:
                self.epochs.pop(knob, None)
                self._next_ask = self.bus.now() + RETRY_S

        return then
