"""What the KL controller can be told: the parameters of `AdaptiveKLController`, and where it acts."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from midflight.kernel.spec import ServiceSpec, live
from midflight.services.controllers.spec import ControllerSpec


class KlConfig(ControllerSpec):
    """Holds the knob `kl.coef` and moves it after every step's measured KL."""

    entry: ClassVar[str] = "midflight.services.controllers.kl.service:Kl"

    kind: Literal["kl"] = "kl"
    knob: str = Field("kl.coef", description="The knob it holds.")
    metric: str = Field("kl", description="The learner's metric it reads, nats per token.")
    controller_type: Literal["exponential", "linear", "pid", "schedule"] = Field(
        "exponential", description="The control law.", json_schema_extra=live()
    )
    initial_coef: float = Field(0.2, gt=0, description="Coefficient before the first update.")
    target_kl: float = Field(
        0.01,
        gt=0,
        description="KL to the reference to hold, nats per token.",
        json_schema_extra=live(1e-6, 100.0, "nats per token"),
    )
    min_coef: float = Field(0.001, ge=0, description="Lower clamp.", json_schema_extra=live(0.0, 100.0))
    max_coef: float = Field(10.0, gt=0, description="Upper clamp.", json_schema_extra=live(1e-6, 100.0))
    exp_factor: float = Field(
        1.03,
        gt=1,
        description="exponential: factor while the KL is above its target.",
        json_schema_extra=live(1.0001, 10.0),
    )
    exp_decay: float = Field(
        0.99, gt=0, lt=1, description="exponential: factor while it is below.", json_schema_extra=live(0.01, 0.9999)
    )
    linear_factor: float = Field(
        0.5, gt=0, description="linear: gain on the relative error.", json_schema_extra=live(1e-6, 10.0)
    )
    kp: float = Field(0.1, ge=0, description="pid: proportional gain.", json_schema_extra=live(0.0, 100.0))
    ki: float = Field(0.01, ge=0, description="pid: integral gain.", json_schema_extra=live(0.0, 100.0))
    kd: float = Field(0.001, ge=0, description="pid: derivative gain.", json_schema_extra=live(0.0, 100.0))
    schedule_type: Literal["cosine", "linear", "exponential", "warmup_cosine"] = Field(
        "cosine", description="schedule: its shape."
    )
    schedule_steps: int = Field(
        1000, ge=1, description="schedule: steps until it reaches `min_coef`.", json_schema_extra=live(1, 10**9)
    )
    smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of the mean of the KL that the law reads, a step.",
        json_schema_extra=live(0.0, 0.9999),
    )

    @model_validator(mode="after")
    def _starts_within_its_clamps(self) -> Self:
        if not self.min_coef <= self.initial_coef <= self.max_coef:
            low, high = f"min_coef {self.min_coef:g}", f"max_coef {self.max_coef:g}"
            raise ValueError(f"initial_coef {self.initial_coef:g} must lie between {low} and {high}")
        if (self.controller_type, self.schedule_type, self.min_coef) == ("schedule", "exponential", 0.0):
            raise ValueError("an exponential schedule never reaches 0: give min_coef > 0")
        return self

    @property
    def steers(self) -> tuple[str, ...]:
        """One coefficient."""
        return (self.knob,)

    @property
    def reads(self) -> tuple[str, ...]:
        """One metric."""
        return (self.metric,)

    def conflicts(self, others: Mapping[str, ServiceSpec]) -> Iterator[tuple[str, str]]:
        """A coefficient that no loss reads, or that another steers, cannot be steered."""
        yield from self.rivals(others)
        if needs_a_kl_term(self.knob, others):
            yield "knob", "the learner has no KL term: set its kl.type to reward, loss or advantage, or leave this out"


def needs_a_kl_term(knob: str, others: Mapping[str, ServiceSpec]) -> bool:
    """Whether `knob` is a coefficient that the learner among `others` does not have."""
    terms = [getattr(other, "kl", None) for other in others.values() if other.part == "learner"]
    return knob == "kl.coef" and any(term is not None and term.type is None for term in terms)
