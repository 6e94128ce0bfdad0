"""constraints: holds a coefficient a limit and moves them after every training step. See `controllers.holder`."""

from collections.abc import Mapping
from typing import ClassVar, cast

from midflight.kernel.mail import Bus
from midflight.kernel.settings import Settings
from midflight.messages.base import Scalar
from midflight.services.controllers.holder import Holder

from .config import ConstraintsConfig
from .law import Bound, ConstraintOptimizer


class Constraints(Holder):
    """Multipliers of several constraints at once."""

    SCHEMA: ClassVar[str] = "constraints/1"

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        self.config = cast(ConstraintsConfig, settings.config)
        self.limits = self.config.limits
        self.optimizer = law_of(self.config)
        knobs = [limit.knob for limit in self.limits.values()]
        metrics = sorted({limit.metric for limit in self.limits.values()})
        super().__init__(identity, bus, self.optimizer, knobs, metrics)

    def decide(self, measured: Mapping[str, float], step: int) -> Mapping[str, float]:
        """A coefficient for each knob."""
        by_name = {name: measured[limit.metric] for name, limit in self.limits.items()}
        coefficients = self.optimizer.update(by_name, step)
        return {limit.knob: coefficients[name] for name, limit in self.limits.items()}

    def notes(self) -> Mapping[str, Scalar]:
        """Which limits are kept."""
        return {f"status/{name}": self.optimizer.status(name) for name in self.limits}

    def brief_state(self) -> dict[str, object]:
        """Without the windows that say whether a limit is kept: a successor fills its own."""
        state = self.optimizer.state_dict()
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
