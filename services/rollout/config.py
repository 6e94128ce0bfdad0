"""What a rollout can be told."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, model_validator

from midflight.kernel.spec import DEVICE, ServiceSpec, live


class GenerationConfig(ServiceSpec):
    """What every rollout can be told, whatever generates."""

    follows: ClassVar[tuple[str, ...]] = ("ledger",)

    significant: bool = Field(True, description="Nothing goes on without it; see ServiceSpec.")
    slots: int = Field(128, ge=1, le=4096, description="Sequences decoded at the same time.")
    concurrency: int = Field(
        128,
        ge=1,
        le=4096,
        description="Requests that may run at once, in each process; as many as `slots` when omitted, and never more.",
        json_schema_extra=live(1, 4096, "requests", "next sample"),
    )
    max_length: int = Field(128, ge=2, description="Most tokens of a whole conversation, response included.")
    max_new_tokens: int = Field(
        32,
        ge=1,
        description="Most tokens of a response (of every turn of an episode), also in evaluation; `max_length` bounds "
        "it too.",
        json_schema_extra=live(1, 1 << 20, "tokens", "next sample"),
    )
    temperature: float = Field(
        1.0,
        ge=0,
        description="Sampling temperature; log-probs are stored after it. A change here is off-policy for a learner "
        "that keeps its own.",
        json_schema_extra=live(0.0, 10.0, when="next sample"),
    )
    stop_token_ids: list[NonNegativeInt] = Field(
        [], description="Tokens that end a response, besides the end tokens of tokenizer and model."
    )
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        [], max_length=16, description="Texts that end a response as soon as it contains one; they stay in it."
    )
    apply_chat_template: bool = Field(True, description="False: message contents are concatenated (base models).")


class RolloutConfig(GenerationConfig):
    """Generation by the embedded torch engine: continuous batching, in-flight weight updates."""

    entry: ClassVar[str] = "midflight.services.rollout.service:Rollout"

    kind: Literal["rollout"] = "rollout"
    engine: Literal["embedded"] = Field("embedded", description="Which engine generates.")
    device: str = Field(
        "auto", pattern=DEVICE, description="`cpu`, `cuda`, `cuda:N`, or `auto`: the GPU if torch sees one."
    )
    recompute_kv: bool = Field(
        False,
        description="At a weight update, recompute the cache of running sequences with the new weights.",
        json_schema_extra=live(when="next weights"),
    )
    policy_delay: int = Field(
        0,
        ge=0,
        le=1024,
        description="Generate with the policy of this many versions ago, kept in memory: staleness on purpose, for "
        "studies; there can be no evaluation rounds then, for they measure the newest. A rollout that starts again "
        "begins anew with what it is offered.",
    )

    @model_validator(mode="before")
    @classmethod
    def _all_slots(cls, data: Any) -> Any:
        if isinstance(data, dict) and "concurrency" not in data and isinstance(data.get("slots"), int):
            return {**data, "concurrency": max(1, min(4096, data["slots"]))}
        return data

    def conflicts(self, others: Mapping[str, ServiceSpec]) -> Iterator[tuple[str, str]]:
        """An engine further behind than the ledger allows would never get a prompt, nor ever be fit to evaluate."""
        ledgers = {name: other for name, other in others.items() if other.part == "ledger" and self.policy_delay}
        for name, ledger in ledgers.items():
            slack = getattr(ledger, "version_slack", self.policy_delay)
            if self.policy_delay > slack:
                yield "policy_delay", f"{self.policy_delay} versions, but {name}.version_slack is {slack}: raise that"
            most = getattr(ledger, "max_lag", self.policy_delay)
            if getattr(ledger, "on_stale", "train") == "drop" and self.policy_delay > most:
                text = f"{name}.max_lag is {most}, and drops what is older: raise it or set on_stale to train"
                yield "policy_delay", f"{self.policy_delay} versions, but {text}"
            if getattr(getattr(ledger, "data", None), "evaluation", None) is not None:
                yield "policy_delay", f"evaluation measures the newest policy: set {name}.data.evaluation to null"
