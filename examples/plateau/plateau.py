"""plateau: lowers the learning rate when a metric has stopped rising. An example of a service outside midflight.

Takes   `event` (topic metrics), `knob.granted`.
Sends   `knob.acquire`, then `knob.set` with the epoch it was granted.
Stores  nothing.
Dies    any time: the knob keeps its last value, and its successor reads the stream again from the start.
"""

from typing import ClassVar, Literal, cast

from pydantic import Field

from midflight.kernel.actor import Actor
from midflight.kernel.follow import Follow
from midflight.kernel.mail import Bus
from midflight.kernel.node import Letter, handles
from midflight.kernel.settings import Settings
from midflight.kernel.spec import ServiceSpec
from midflight.messages.events import Event
from midflight.messages.knobs import KnobAcquire, KnobGranted, KnobSet
from midflight.messages.sockets import Role
from midflight.messages.wire import Received

ANSWER_S = 5.0
RETRY_S = 2.0


class PlateauConfig(ServiceSpec):
    """Lowers `optim.lr` when `metric` has not risen for `patience` steps."""

    entry: ClassVar[str] = "plateau:Plateau"

    kind: Literal["plateau"] = "plateau"
    metric: str = Field("reward_mean", description="The learner's metric that should rise.")
    patience: int = Field(20, ge=1, description="Steps without a new best before the rate is lowered.")
    factor: float = Field(0.5, gt=0, lt=1, description="What the rate is multiplied by.")


class Plateau(Actor):
    """Holds one knob and follows one metric."""

    PORTS: ClassVar[dict[str, Role]] = {"ctl": "dealer", "ev": "sub"}

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        super().__init__(identity, bus)
        self.config = cast(PlateauConfig, settings.config)
        self.follow = Follow(self.mail, self._take)
        self.held: KnobGranted | None = None
        self.rate = 0.0
        self.best, self.best_step = float("-inf"), 0
        self._next_ask = 0.0

    def on_welcome(self) -> None:
        """A new kernel has granted nothing yet."""
        self.held = None

    def work(self, now: float) -> bool:
        """Read the stream to its end, then ask for the knob until it is ours: nothing is decided on old metrics."""
        self.follow.catch_up(self.newest_event)
        current = 0 < self.newest_event <= self.follow.last
        if self.held is None and current and now >= self._next_ask:
            self._next_ask = now + RETRY_S
            ask = KnobAcquire(knob="optim.lr")
            self.mail.request("ctl", ask, ANSWER_S, self._answered, lambda why: None, name="knob")
        return False

    @handles(Event)
    def _on_event(self, message: Event, letter: Letter) -> None:
        self.follow.live(message)

    def _answered(self, received: Received) -> None:
        if isinstance(received.message, KnobGranted):
            self.held = received.message
            self.rate = float(cast(float, self.held.value))

    def _take(self, event: Event) -> None:
        value = event.body.get(self.config.metric)
        if event.topic != "metrics" or event.step is None or not isinstance(value, int | float):
            return
        self.progress += 1
        if value > self.best:
            self.best, self.best_step = float(value), event.step
        elif self.held and event.step - self.best_step >= self.config.patience:
            self.best_step = event.step
            self.rate *= self.config.factor
            why = f"{self.config.metric} has not risen for {self.config.patience} steps"
            lower = KnobSet(knob="optim.lr", value=self.rate, epoch=self.held.epoch, reason=why)
            self.mail.request("ctl", lower, ANSWER_S, lambda received: None, lambda why: None, name="knob.set")
