"""objectives: holds a weight for each named reward and moves them after every step. See `controllers.controller`.

Besides what every controller sends, its decisions say which steps are on the Pareto front (`front`), and the reference
point of the hypervolume once it is fixed.
"""

from collections.abc import Mapping
from typing import ClassVar

from midflight.messages.base import Scalar
from midflight.messages.knobs import REWARD_KNOB
from midflight.services.controllers.controller import Controller

from .config import MEAN, ObjectivesConfig
from .law import MultiObjectiveOptimizer

SHOWN = 10


class Objectives(Controller):
    """Weights of several rewards at once."""

    SCHEMA: ClassVar[str] = "objectives/1"
    config: ObjectivesConfig
    law: MultiObjectiveOptimizer
    _doubted = False

    def make_law(self) -> MultiObjectiveOptimizer:
        """The law of the configuration."""
        return law_of(self.config)

    def decide(self, measured: Mapping[str, float], step: int) -> Mapping[str, float]:
        """A weight for each objective."""
        weights = self.law.update({name: measured[MEAN.format(name)] for name in self.config.objective_weights}, step)
        if self.law.doubts and not self._doubted:
            self._doubted = True
            text = "its weight is negative and so are its values: what it punishes would be rewarded"
            self.event("note", {"level": "warning", "text": f"objective {self.law.doubts[0]!r}: {text}"})
        return {REWARD_KNOB + name: weight for name, weight in weights.items()}

    def notes(self) -> Mapping[str, Scalar]:
        """The front, newest steps first, and the reference point."""
        steps = sorted((tag for _, tag in self.law.archive.entries), reverse=True)
        found: dict[str, Scalar] = {"front": " ".join(map(str, steps[:SHOWN])), "front_size": len(steps)}
        if self.law.reference:
            found["reference"] = " ".join(f"{x:.4g}" for x in self.law.reference)
        return found

    def brief_state(self) -> dict[str, object]:
        """With the least crowded part of the archive."""
        return self.law.brief()


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
