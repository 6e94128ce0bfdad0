"""kl: holds the knob `kl.coef` and moves it after every training step.

Takes   `event` (topic metrics: the learner's measured KL, once a step), `knob.granted`.
Sends   `knob.acquire`, `knob.set` with the epoch it was granted; its state as an event, so that a successor goes on.
Stores  nothing on disk; the law's state is in the journal.
Dies    any time: the knob holds its last value, and its successor takes over from the last journaled state.
"""

import json
from typing import Any, ClassVar, cast

from midflight.kernel.actor import Actor
from midflight.kernel.follow import Follow
from midflight.kernel.mail import Bus
from midflight.kernel.node import Letter, handles
from midflight.kernel.settings import Settings
from midflight.messages.base import Scalar
from midflight.messages.control import Refused
from midflight.messages.events import Event
from midflight.messages.knobs import KnobAcquire, KnobGranted, KnobOk, KnobSet
from midflight.messages.sockets import Role
from midflight.messages.wire import Received

from .config import KlConfig
from .law import AdaptiveKLController

SCHEMA = "kl/1"
ANSWER_S = 5.0
RETRY_S = 2.0


class Kl(Actor):
    """One law, one knob."""

    PORTS: ClassVar[dict[str, Role]] = {"ctl": "dealer", "ev": "sub"}

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        super().__init__(identity, bus)
        self.config = cast(KlConfig, settings.config)
        self.law = law_of(self.config)
        self.follow = Follow(self.mail, self._take)
        self.epoch: int | None = None
        self._next_ask = 0.0

    def on_welcome(self) -> None:
        """A new kernel granted nothing yet."""
        self.epoch = None
        self._next_ask = 0.0

    def export_state(self) -> tuple[str, dict[str, Any]]:
        """The law's whole state."""
        return SCHEMA, self.law.state_dict()

    def import_state(self, schema: str, state: dict[str, Any]) -> None:
        """Go on where another law of the same kind stopped."""
        if schema != SCHEMA:
            raise ValueError(f"this controller continues {SCHEMA}, not {schema!r}")
        self.law.load_state_dict(state)

    def work(self, now: float) -> bool:
        """Read the stream to its end, then ask for the knob until it is ours: old metrics are never decided again."""
        self.follow.catch_up(self.newest_event)
        current = 0 < self.newest_event <= self.follow.last
        if self.epoch is None and current and now >= self._next_ask:
            self._next_ask = now + RETRY_S
            self.mail.request(
                "ctl", KnobAcquire(knob=self.config.knob), ANSWER_S, self._granted, self._not_granted, name="knob"
            )
        return False

    @handles(Event)
    def _on_event(self, message: Event, letter: Letter) -> None:
        self.follow.live(message)

    def _take(self, event: Event) -> None:
        if self.epoch is None and event.body.get("knob") == self.config.knob:
            self._next_ask = 0.0  # it has been declared, released or taken: perhaps it can be had now
        if event.topic == "controller" and event.body.get("knob") == self.config.knob:
            self._resume(event)
        kl = event.body.get(self.config.metric)
        if event.topic == "metrics" and event.step is not None and isinstance(kl, int | float):
            self.progress += 1
            self._decide(float(kl), event.step)

    def _resume(self, event: Event) -> None:
        """A predecessor's state: take it over, unless it is our own decision coming back."""
        state = event.body.get("state")
        if event.source != self.identity and isinstance(state, str):
            self.law.load_state_dict(json.loads(state))

    def _decide(self, kl: float, step: int) -> None:
        if self.epoch is None:
            return
        coef = self.law.update(kl, step)
        state = json.dumps(self.law.state_dict() | {"history": []})  # the journal holds the history already
        body: dict[str, Scalar] = {"knob": self.config.knob, "at_step": step, "kl": kl, "value": coef, "state": state}
        self.event("controller", body, step)
        reason = f"kl {kl:.4g} at step {step}, target {self.config.target_kl:g}"
        self.mail.request(
            "ctl",
            KnobSet(knob=self.config.knob, value=coef, epoch=self.epoch, reason=reason),
            ANSWER_S,
            self._was_set,
            lambda why: None,
            name="knob.set",
        )
        self.stats = {"coef": round(coef, 5), "kl": round(kl, 5)}

    def _granted(self, received: Received) -> None:
        answer = received.message
        if isinstance(answer, KnobGranted):
            self.epoch = answer.epoch
        elif isinstance(answer, Refused):
            self.stats = {"waiting": f"{self.config.knob} ({answer.code})"}

    def _not_granted(self, why: str) -> None:
        self.epoch = None

    def _was_set(self, received: Received) -> None:
        if not isinstance(received.message, KnobOk):  # the knob was taken from us: ask for it again
            self.epoch = None
            self._next_ask = self.bus.now() + RETRY_S


def law_of(config: KlConfig) -> AdaptiveKLController:
    """The control law with its parameters out of the configuration."""
    return AdaptiveKLController(
        initial_coef=config.initial_coef,
        target_kl=config.target_kl,
        controller_type=config.controller_type,
        min_coef=config.min_coef,
        max_coef=config.max_coef,
        exp_factor=config.exp_factor,
        exp_decay=config.exp_decay,
        linear_factor=config.linear_factor,
        kp=config.kp,
        ki=config.ki,
        kd=config.kd,
        schedule_type=config.schedule_type,
        schedule_steps=config.schedule_steps,
    )
