"""kl: holds the knob `kl.coef` and moves it after every training step. See `controllers.controller`."""

from collections.abc import Mapping
from typing import ClassVar

from midflight.messages.base import Scalar
from midflight.services.controllers.controller import Controller

from .config import KlConfig
from .law import AdaptiveKLController


class Kl(Controller):
    """The adaptive KL coefficient."""

    SCHEMA: ClassVar[str] = "kl/1"
    config: KlConfig
    law: AdaptiveKLController

    def make_law(self) -> AdaptiveKLController:
        """The law of the configuration."""
        return law_of(self.config)

    def decide(self, measured: Mapping[str, float], step: int) -> Mapping[str, float]:
        """The coefficient for the next step."""
        return {self.config.knob: self.law.update(measured[self.config.metric], step)}

    def track(self, values: Mapping[str, float]) -> None:
        """The coefficient in force."""
        self.law.coef = min(max(values[self.config.knob], self.config.min_coef), self.config.max_coef)

    def along(self, field: str, value: Scalar) -> Mapping[str, Scalar]:
        """Where it began is past: a clamp may be set beyond it."""
        low = float(str(value)) if field == "min_coef" else self.config.min_coef
        high = float(str(value)) if field == "max_coef" else self.config.max_coef
        return {field: value, "initial_coef": min(max(self.config.initial_coef, low), high)}

    def reason(self, measured: Mapping[str, float], step: int) -> str:
        """The KL and what it should be."""
        return f"{super().reason(measured, step)}, target {self.config.target_kl:g}"

    def brief_state(self) -> dict[str, object]:
        """Without the history, which the journal's earlier decisions are."""
        return self.law.state_dict() | {"history": []}


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
        smoothing=config.smoothing,
    )
