"""What the objectives controller can be told: the parameters of `MultiObjectiveOptimizer`."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from midflight.kernel.spec import ServiceSpec, live
from midflight.messages.knobs import MOST_REWARD_WEIGHT, REWARD_KNOB, REWARD_NAME
from midflight.services.controllers.spec import ControllerSpec

from .law import MOST_VOLUME

MEAN = "objective/{}"
"""The learner's metric of an objective."""
Range = Annotated[list[float], Field(min_length=2, max_length=2)]


class ObjectivesConfig(ControllerSpec):
    """Holds a weight for each named reward and moves them after every step, by a multi-objective method."""

    entry: ClassVar[str] = "midflight.services.controllers.objectives.service:Objectives"

    kind: Literal["objectives"] = "objectives"
    objective_weights: dict[str, float] = Field(
        description="Name of a reward to how much it is to count; below 0 it is minimised.", min_length=1
    )
    pareto_method: Literal["weighted_sum", "tchebycheff", "pareto_dominance", "hypervolume"] = Field(
        "weighted_sum", description="The law; `method` is an alias.", json_schema_extra=live()
    )
    diversity_weight: float = Field(
        0.1,
        ge=0,
        description="pareto_dominance: how much an uncrowded point is worth.",
        json_schema_extra=live(0.0, 1000.0),
    )
    archive_size: int = Field(100, ge=2, description="Non-dominated policies remembered.")
    ranges: dict[str, Range] = Field(
        {},
        description="[low, high] of an objective: its unit and how good it can get. When omitted, its running "
        "deviation and the best seen so far, by which a reward never reached is not behind.",
    )
    rho: float = Field(
        0.05,
        ge=0,
        description="tchebycheff: weight of the objectives that are not the furthest behind.",
        json_schema_extra=live(0.0, 1000.0),
    )
    temperature: float = Field(
        0.1,
        ge=0,
        description="tchebycheff: 0 looks at the furthest only, above it is smooth.",
        json_schema_extra=live(0.0, 1000.0),
    )

    @model_validator(mode="before")
    @classmethod
    def _alias(cls, given: Any) -> Any:
        if isinstance(given, dict) and "method" in given:
            if "pareto_method" in given:
                raise ValueError("method is another name of pareto_method: give one of them")
            given = {("pareto_method" if name == "method" else name): value for name, value in given.items()}
        return given

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        for name, weight in self.objective_weights.items():
            if not REWARD_NAME.fullmatch(name):
                raise ValueError(f"objective_weights.{name}: a steered reward is named in a-z, 0-9, _, 40 at most")
            if abs(weight) > MOST_REWARD_WEIGHT:
                raise ValueError(f"objective_weights.{name}: {weight:g} is beyond {MOST_REWARD_WEIGHT:g}")
        if not any(self.objective_weights.values()):
            raise ValueError("objective_weights are all 0: nothing would be learned")
        if self.pareto_method == "hypervolume" and len(self.objective_weights) > MOST_VOLUME:
            raise ValueError(f"hypervolume takes at most {MOST_VOLUME} objectives: its cost doubles with each")
        if self.archive_size < 2 * len(self.objective_weights):
            raise ValueError(f"archive_size must be at least {2 * len(self.objective_weights)}, two an objective")
        for name, (low, high) in self.ranges.items():
            if name not in self.objective_weights:
                raise ValueError(f"ranges names {name!r}, which objective_weights does not")
            if low >= high:
                raise ValueError(f"ranges.{name}: {low:g} must be less than {high:g}")
        return self

    @property
    def steers(self) -> tuple[str, ...]:
        """A weight an objective."""
        return tuple(REWARD_KNOB + name for name in self.objective_weights)

    @property
    def reads(self) -> tuple[str, ...]:
        """Their means over a step's batch."""
        return tuple(MEAN.format(name) for name in self.objective_weights)

    def conflicts(self, others: Mapping[str, ServiceSpec]) -> Iterator[tuple[str, str]]:
        """A weight that the learner does not have, or that another holds, cannot be held."""
        yield from self.rivals(others)
        for slot, learner in others.items():
            known = getattr(learner, "objective_weights", None)
            for name in sorted(set(self.objective_weights) - set(known or ())) if learner.part == "learner" else ():
                yield f"objective_weights.{name}", f"{slot}.objective_weights does not name {name}: add it there, say 1"
