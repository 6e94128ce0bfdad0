"""What the objectives controller can be told: the parameters of `MultiObjectiveOptimizer`."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from midflight.kernel.spec import ServiceSpec

Range = Annotated[list[float], Field(min_length=2, max_length=2)]


class ObjectivesConfig(ServiceSpec):
    """Holds a weight for each named reward and moves them after every step, towards what is furthest behind."""

    entry: ClassVar[str] = "midflight.services.controllers.objectives.service:Objectives"

    kind: Literal["objectives"] = "objectives"
    objective_weights: dict[str, float] = Field(
        description="Name of a reward to how much it is to count; below 0 it is minimised.", min_length=1
    )
    pareto_method: Literal["weighted_sum", "tchebycheff", "pareto_dominance", "hypervolume"] = Field(
        "weighted_sum", description="The law; `method` is an alias."
    )
    diversity_weight: float = Field(0.1, ge=0, description="pareto_dominance: how much an uncrowded point is worth.")
    archive_size: int = Field(100, ge=2, description="Non-dominated policies remembered.")
    ranges: dict[str, Range] = Field(
        {}, description="[low, high] of an objective: its unit; its running deviation when omitted."
    )
    rho: float = Field(
        0.05, ge=0, description="tchebycheff: weight of the objectives that are not the furthest behind."
    )
    temperature: float = Field(0.1, ge=0, description="tchebycheff: 0 looks at the furthest only, above it is smooth.")

    @model_validator(mode="before")
    @classmethod
    def _alias(cls, given: Any) -> Any:
        if isinstance(given, dict) and "method" in given and "pareto_method" not in given:
            given = {**given, "pareto_method": given["method"]}
            del given["method"]
        return given

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        for name, (low, high) in self.ranges.items():
            if name not in self.objective_weights:
                raise ValueError(f"ranges names {name!r}, which objective_weights does not")
            if low >= high:
                raise ValueError(f"ranges.{name}: {low:g} must be less than {high:g}")
        return self

    def conflicts(self, others: Mapping[str, ServiceSpec]) -> Iterator[tuple[str, str]]:
        """A weight that the learner does not have cannot be held."""
        for slot, learner in others.items():
            known = getattr(learner, "objective_weights", None)
            for name in sorted(set(self.objective_weights) - set(known or ())) if learner.part == "learner" else ():
                yield f"objective_weights.{name}", f"{slot}.objective_weights does not name {name}: add it there, say 1"
