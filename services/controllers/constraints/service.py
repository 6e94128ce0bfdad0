"""constraints: holds a coefficient a limit and moves them after every training step. See `controllers.controller`."""

from collections.abc import Mapping
from typing import ClassVar, cast

from midflight.messages.base import Scalar
from midflight.services.controllers.controller import Controller

from .config import ConstraintsConfig
from .law import Bound, ConstraintOptimizer


class Constraints(Controller):
    """Multipliers of several constraints at once."""

    SCHEMA: ClassVar[str] = "constraints/1"
    config: ConstraintsConfig
    law: ConstraintOptimizer

    def make_law(self) -> ConstraintOptimizer:
        """The law of the configuration."""
        return law_of(self.config)

    def decide(self, measured: Mapping[str, float], step: int) -> Mapping[str, float]:
        """A coefficient for each knob."""
        by_name = {name: measured[limit.metric] for name, limit in self.config.limits.items()}
        coefficients = self.law.update(by_name, step)
        return {limit.knob: coefficients[name] for name, limit in self.config.limits.items()}

    def notes(self) -> Mapping[str, Scalar]:
        """Which limits are kept."""
        return {f"status/{name}": self.law.status(name) for name in self.config.limits}

    def brief_state(self) -> dict[str, object]:
        """Without the windows that say whether a limit is kept: a successor fills its own."""
        state = self.law.state_dict()
        each = cast("dict[str, dict[str, object]]", state["constraints"])
        return state | {"constraints": {name: one | {"recent": []} for name, one in each.items()}}


def law_of(config: ConstraintsConfig) -> ConstraintOptimizer:
    """The law with its parameters out of the configuration."""
    bounds = {
        name: Bound(limit.at_most or limit.at_least or 0.0, limit.at_most is not None, limit.initial, limit.most)
        for name, limit in config.limits.items()
    }
    return ConstraintOptimizer(
        bounds,
        method=config.method,
        lagrangian_lr=config.lagrangian_lr,
        mu=config.mu,
        kp=config.kp,
        ki=config.ki,
        kd=config.kd,
        delay=config.delay,
        smoothing=config.smoothing,
    )
