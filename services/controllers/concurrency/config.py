"""What the concurrency controller can be told: the parameters of `AdaptiveConcurrency`, and whose limit it holds."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from midflight.kernel.spec import ServiceSpec, knob_prefix, live
from midflight.services.controllers.spec import ControllerSpec


class ConcurrencyConfig(ControllerSpec):
    """Holds the knob `rollout.concurrency` and moves it by the queues and caches of the engines, from where it is."""

    entry: ClassVar[str] = "midflight.services.controllers.concurrency.service:Concurrency"

    kind: Literal["concurrency"] = "concurrency"
    knob: str = Field("rollout.concurrency", description="The knob it holds, of the rollouts whose load it reads.")
    least: int = Field(1, ge=1, description="Lower clamp.", json_schema_extra=live(1, 4096, "requests"))
    most: int = Field(
        4096,
        ge=1,
        description="Upper clamp; it never exceeds the `slots` of an engine either.",
        json_schema_extra=live(1, 4096, "requests"),
    )
    increase: int = Field(
        2, ge=1, description="What it rises by while there is room.", json_schema_extra=live(1, 1024, "requests")
    )
    decrease: float = Field(
        0.7, gt=0, lt=1, description="Part of itself that it falls to.", json_schema_extra=live(0.01, 0.99, "ratio")
    )
    kv_low: float = Field(
        0.75,
        gt=0,
        le=1,
        description="Share of the KV cache below which it rises.",
        json_schema_extra=live(0.01, 1.0, "ratio"),
    )
    kv_high: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of the KV cache above which it falls.",
        json_schema_extra=live(0.01, 1.0, "ratio"),
    )
    queue_high: float = Field(
        0.1,
        ge=0,
        description="Requests that an engine holds and cannot run, as a part of the limit, beyond which it falls.",
        json_schema_extra=live(0.0, 100.0, "ratio"),
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least {self.least} must not exceed most {self.most}")
        if self.kv_low >= self.kv_high:
            raise ValueError(f"kv_low {self.kv_low:g} must be less than kv_high {self.kv_high:g}")
        return self

    @property
    def steers(self) -> tuple[str, ...]:
        """One limit."""
        return (self.knob,)

    @property
    def reads(self) -> tuple[str, ...]:
        """Nothing of the learner's."""
        return ()

    def conflicts(self, others: Mapping[str, ServiceSpec]) -> Iterator[tuple[str, str]]:
        """The knob must be some rollouts' limit."""
        yield from self.rivals(others)
        known = [f"{knob_prefix(slot)}concurrency" for slot, other in others.items() if other.part == "rollout"]
        if known and self.knob not in known:
            yield "knob", f"no rollout has {self.knob}; there are {', '.join(known)}"
