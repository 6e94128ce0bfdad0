"""concurrency: holds `rollout.concurrency`, and decides once a training step by what the rollouts have said since.

See `controllers.controller`. Events of topic `throughput` tell the load; at a step without one nothing is decided.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

from midflight.kernel.spec import knob_prefix
from midflight.messages.base import Scalar
from midflight.messages.events import Event
from midflight.services.controllers.controller import Controller

from .config import ConcurrencyConfig
from .law import AdaptiveConcurrency, Load

NOTED: Final = ("active", "queued", "kv_use")
"""The first of a load's values, as a decision is journaled with them."""


class Concurrency(Controller):
    """The adaptive limit on concurrent requests."""

    SCHEMA: ClassVar[str] = "concurrency/1"
    config: ConcurrencyConfig
    law: AdaptiveConcurrency
    load: Load | None = None
    """The most since the last step."""

    def make_law(self) -> AdaptiveConcurrency:
        """The law of the configuration."""
        config = self.config
        return AdaptiveConcurrency(
            config.least,
            config.most,
            config.increase,
            config.decrease,
            config.kv_low,
            config.kv_high,
            config.queue_high,
        )

    def take(self, event: Event) -> None:
        """Hear the rollouts too; after a step their past no longer counts, whether it was decided or not."""
        if event.topic == "throughput" and (load := self.load_in(event.body)):
            self.load = self.load.with_(load) if self.load else load
        if event.topic != "metrics" or self.load:
            super().take(event)
        if event.topic == "metrics" and event.step is not None:
            self.load = None

    def load_in(self, body: Mapping[str, Scalar]) -> Load | None:
        """The load that an event tells, if it is one of the rollouts that are steered."""
        told = [body.get(name) for name in ("active", "queued", "kv_use", "slots", "limit")]
        numbers = [float(value) for value in told if isinstance(value, int | float)]
        ours = f"{knob_prefix(str(body.get('slot')))}concurrency" == self.config.knob
        return Load(*numbers) if ours and len(numbers) == len(told) else None

    def decide(self, measured: Mapping[str, float], step: int) -> Mapping[str, float]:
        """The limit for what begins next."""
        assert self.load is not None
        return {self.config.knob: self.law.update(self.load, step)}

    def track(self, values: Mapping[str, float]) -> None:
        """The limit in force."""
        self.law.value = max(self.law.least, min(self.law.most, int(values[self.config.knob])))

    def reason(self, measured: Mapping[str, float], step: int) -> str:
        """The load, in numbers."""
        told = ", ".join(f"{name} {value:.3g}" for name, value in self.notes().items())
        return f"{told} at step {step}"

    def notes(self) -> Mapping[str, float]:
        """The same for the journal."""
        return dict(zip(NOTED, self.load.values() if self.load else (), strict=False))
