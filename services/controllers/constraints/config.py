"""What the constraint controller can be told: the limits, the knobs that keep them, and the law."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from midflight.kernel.spec import Config, ServiceSpec, live
from midflight.services.controllers.kl.config import needs_a_kl_term
from midflight.services.controllers.spec import ControllerSpec


class LimitConfig(Config):
    """One limit, at most or at least, and the knob that keeps it."""

    metric: str = Field(description="The learner's metric it bounds, such as `kl` or `entropy`, nats per token.")
    knob: str = Field(description="The coefficient it moves, such as `kl.coef` or `entropy.coef`.")
    at_most: float | None = Field(None, gt=0, description="Upper limit; give this or `at_least`.")
    at_least: float | None = Field(None, gt=0, description="Lower limit; give this or `at_most`.")
    initial: float = Field(0.0, ge=0, description="Coefficient before the first update.")
    most: float = Field(1.0, gt=0, description="Largest coefficient; the limit is infeasible when this does not do.")

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("give either at_most or at_least")
        if self.initial > self.most:
            raise ValueError(f"initial {self.initial:g} lies above most {self.most:g}")
        return self


class ConstraintsConfig(ControllerSpec):
    """Holds coefficients and moves each, after every step, so that a limit is kept."""

    entry: ClassVar[str] = "midflight.services.controllers.constraints.service:Constraints"

    kind: Literal["constraints"] = "constraints"
    limits: dict[str, LimitConfig] = Field(description="Name of a constraint to its limit.", min_length=1)
    method: Literal["projected", "log", "augmented", "pid", "penalty"] = Field(
        "projected", description="The law.", json_schema_extra=live()
    )
    lagrangian_lr: float = Field(
        0.01,
        ge=0,
        description="projected, log, augmented: gain on the relative violation.",
        json_schema_extra=live(0.0, 1000.0),
    )
    mu: float = Field(
        0.1,
        ge=0,
        description="augmented, penalty: gain on this step's relative violation.",
        json_schema_extra=live(0.0, 1000.0),
    )
    kp: float = Field(0.1, ge=0, description="pid: proportional gain.", json_schema_extra=live(0.0, 1000.0))
    ki: float = Field(0.01, ge=0, description="pid: integral gain.", json_schema_extra=live(0.0, 1000.0))
    kd: float = Field(
        0.01, ge=0, description="pid: gain on the rise over `delay` updates.", json_schema_extra=live(0.0, 1000.0)
    )
    delay: int = Field(10, ge=1, description="pid: updates over which a rise counts.")
    smoothing: float = Field(
        0.9, ge=0, lt=1, description="Decay of the mean violation, a step.", json_schema_extra=live(0.0, 0.9999)
    )

    @model_validator(mode="after")
    def _one_knob_each(self) -> Self:
        knobs = [limit.knob for limit in self.limits.values()]
        for knob in sorted({knob for knob in knobs if knobs.count(knob) > 1}):
            raise ValueError(f"limits: two of them move {knob}; give each limit a knob of its own")
        return self

    @property
    def steers(self) -> tuple[str, ...]:
        """A coefficient a limit."""
        return tuple(limit.knob for limit in self.limits.values())

    @property
    def reads(self) -> tuple[str, ...]:
        """What the limits are about."""
        return tuple(sorted({limit.metric for limit in self.limits.values()}))

    def conflicts(self, others: Mapping[str, ServiceSpec]) -> Iterator[tuple[str, str]]:
        """Two integrators on one quantity wind each other up; a coefficient that no loss reads steers nothing."""
        yield from self.rivals(others)
        rivals = {slot: spec for slot, spec in others.items() if spec.part in ("kl", "constraints")}
        for name, limit in self.limits.items():
            for slot, rival in rivals.items():
                bounds = getattr(rival, "limits", {"": rival}).values()
                if any(limit.metric == one.metric for one in bounds):
                    yield f"limits.{name}", f"{slot} steers by {limit.metric} too: leave one of them out"
            if needs_a_kl_term(limit.knob, others):
                yield f"limits.{name}.knob", "the learner has no KL term: set its kl.type to reward, loss or advantage"
