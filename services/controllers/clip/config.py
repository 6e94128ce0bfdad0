"""What the clip controller can be told: the parameters of `AdaptiveClipper`, and where it looks."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Final, Literal

from pydantic import Field

from midflight.kernel.spec import ServiceSpec, live
from midflight.services.controllers.spec import ControllerSpec

CLIPPED_AROUND_MU: Final = ("bypass_ppo", "gspo", "dppo")
"""The learner's losses whose clip bounds what the lag did; with one update a batch no other clip ever acts."""


class ClipConfig(ControllerSpec):
    """Holds the knob `clip.range` and moves it after every step's measured distance from the behaviour policy."""

    entry: ClassVar[str] = "midflight.services.controllers.clip.service:Clip"

    kind: Literal["clip"] = "clip"
    metric: str = Field("mismatch_k3", description="The learner's metric it reads, nats per token.")
    init_value: float = Field(
        0.2, gt=0, le=0.5, description="Clip range before the first update.", json_schema_extra=live(1e-4, 0.5, "ratio")
    )
    kl_target: float = Field(
        0.01,
        gt=0,
        description="KL between the policy and what generated its samples to hold.",
        json_schema_extra=live(1e-9, 100.0, "nats per token"),
    )
    rate: float = Field(
        1.5,
        gt=1,
        description="Factor of a change, and of the band around the target without one.",
        json_schema_extra=live(1.0001, 100.0),
    )

    @property
    def steers(self) -> tuple[str, ...]:
        """The clip range."""
        return ("clip.range",)

    @property
    def reads(self) -> tuple[str, ...]:
        """One metric."""
        return (self.metric,)

    def conflicts(self, others: Mapping[str, ServiceSpec]) -> Iterator[tuple[str, str]]:
        """A clip that never acts cannot be steered."""
        yield from self.rivals(others)
        losses = [getattr(other, "loss", None) for other in others.values() if other.part == "learner"]
        if any(loss not in CLIPPED_AROUND_MU for loss in losses):
            known = ", ".join(CLIPPED_AROUND_MU)
            yield "kind", f"the learner's loss {losses[0]} does not clip around mu: choose {known}, or leave this out"
