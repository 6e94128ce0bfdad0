"""objectives: holds a weight for each named reward and moves them after every training step. See `controllers.holder`.

Besides what every controller sends, its decisions say which steps are on the Pareto front (`front`), and the reference
point of the hypervolume once it is fixed.
"""

from collections.abc import Mapping
from typing import ClassVar, cast

from midflight.kernel.mail import Bus
from midflight.kernel.settings import Settings
from midflight.messages.base import Scalar
from midflight.messages.knobs import REWARD_KNOB
from midflight.services.controllers.holder import Holder

from .config import ObjectivesConfig
from .law import MultiObjectiveOptimizer

MEAN = "objective/{}"
"""The learner's metric of an objective."""
SHOWN = 10


class Objectives(Holder):
    """Weights of several rewards at once."""

    SCHEMA: ClassVar[str] = "objectives/1"

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        config = cast(ObjectivesConfig, settings.config)
        self.names = list(config.objective_weights)
        self.optimizer = law_of(config)
        self._doubted = False
        knobs = [REWARD_KNOB + name for name in self.names]
        super().__init__(identity, bus, self.optimizer, knobs, [MEAN.format(name) for name in self.names])

    def decide(self, measured: Mapping[str, float], step: int) -> Mapping[str, float]:
        """A weight for each objective."""
        weights = self.optimizer.update({name: measured[MEAN.format(name)] for name in self.names}, step)
        if self.optimizer.doubts and not self._doubted:
            self._doubted = True
            text = "its weight is negative and so are its values: what it punishes would be rewarded"
            self.event("note", {"level": "warning", "text": f"objective {self.optimizer.doubts[0]!r}: {text}"})
        return {REWARD_KNOB + name: weight for name, weight in weights.items()}

    def notes(self) -> Mapping[str, Scalar]:
        """The front, newest steps first, and the reference point."""
        steps = sorted((tag for _, tag in self.optimizer.archive.entries), reverse=True)
        found: dict[str, Scalar] = {"front": " ".join(map(str, steps[:SHOWN])), "front_size": len(steps)}
        if self.optimizer.reference:
            found["reference"] = " ".join(f"{x:.4g}" for x in self.optimizer.reference)
        return found

    def brief_state(self) -> dict[str, object]:
        """With the least crowded part of the archive."""
        return self.optimizer.brief()


def law_of(config: ObjectivesConfig) -> MultiObjectiveOptimizer:
    """The law with its parameters out of the configuration."""
    return MultiObjectiveOptimizer(
        list(config.objective_weights),
        config.objective_weights,
        config.pareto_method,
        diversity_weight=config.diversity_weight,
        archive_size=config.archive_size,
        ranges={name: (low, high) for name, (low, high) in config.ranges.items()},
        rho=config.rho,
        temperature=config.temperature,
    )
