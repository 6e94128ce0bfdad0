"""What the ledger can be told."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from midflight.kernel.spec import Config, ServiceSpec, live
from midflight.messages.samples import MOST_HELD
from midflight.services.data.source import Source


class DataConfig(Config):
    """Where prompts come from: a file or folder (R7), `split@path`, a hub name, or `task:name?rows=...`."""

    train: Source = Field(description="Training prompts: rows with `messages` and `answer`.")
    evaluation: Source | None = Field(None, description="Held-out prompts of the same form.")
    changed: Literal["refuse", "accept"] = Field(
        "refuse", description="What to do when a run that goes on finds other data than it began with."
    )


class EvaluationConfig(Config):
    """When held-out prompts are generated and scored."""

    every: int = Field(
        20,
        ge=1,
        description="Policy versions between two rounds.",
        json_schema_extra=live(1, 1_000_000, "versions", "next policy version"),
    )
    prompts: int = Field(256, ge=1, description="Prompts a round, one response each.")
    temperature: float = Field(
        1.0,
        ge=0,
        description="Sampling temperature of evaluation responses; 0 is greedy.",
        json_schema_extra=live(0.0, 10.0, when="next evaluation round"),
    )


class LedgerConfig(ServiceSpec):
    """Prompts, samples, leases, batches, exact accounting."""

    entry: ClassVar[str] = "midflight.services.ledger.service:Ledger"
    takeover: ClassVar[Literal["beside", "after", "restart", "never"]] = "never"
    fixed: ClassVar[tuple[str, ...]] = ("data.train", "data.evaluation", "responses_per_prompt", "evaluation.prompts")

    kind: Literal["ledger"] = "ledger"
    significant: bool = Field(True, description="Nothing goes on without it; see ServiceSpec.")
    replicas: int = Field(1, ge=1, le=1, description="One: there is one account of the samples.")
    data: DataConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    prompts_per_rollout: int = Field(
        16,
        ge=1,
        description="Prompts (groups) in a training batch.",
        json_schema_extra=live(1, 4096, "prompts", "next batch"),
    )
    responses_per_prompt: int = Field(8, ge=1, description="Samples of each prompt.")
    max_turns: int = Field(
        1,
        ge=1,
        le=512,
        description="Times the model may speak in an episode; between two of them `interact` of the reward file does.",
    )
    epochs: int | None = Field(None, ge=1, description="Passes over the training prompts; no end when omitted.")
    max_staleness: int = Field(
        2,
        ge=0,
        description="Batches that may be generated ahead of the one in training; 0 is synchronous.",
        json_schema_extra=live(0, 1024, "batches", "next prompt admitted"),
    )
    version_slack: int = Field(
        0,
        ge=0,
        description="Versions an engine may be behind the newest and still get prompts; 0 is the least stale.",
        json_schema_extra=live(0, 1024, "versions", "next sample"),
    )
    max_lag: int = Field(
        8,
        ge=0,
        description="Versions a sample's oldest token may lag behind when it is batched.",
        json_schema_extra=live(0, 1_000_000, "versions", "next batch"),
    )
    on_stale: Literal["drop", "train"] = Field(
        "drop",
        description="What happens to a sample beyond `max_lag`.",
        json_schema_extra=live(when="next batch"),
    )
    filter_zero_variance: bool = Field(
        False,
        description="Filter groups whose rewards are all equal.",
        json_schema_extra=live(when="next batch"),
    )
    deterministic: bool = Field(
        False,
        description="With `max_staleness: 0`: generate each batch as one cohort, so that a run repeats bit for bit.",
    )
    lease_s: float = Field(
        30.0,
        gt=0,
        description="Silence after which a worker's leases return, in seconds.",
        json_schema_extra=live(1.0, 86400.0, "s", "next lease or renewal"),
    )
    claim_s: float = Field(1.5, gt=0, description="After a ledger restart, time to claim held leases, in seconds.")
    max_tries: int = Field(
        4,
        ge=1,
        description="Begun tries after which a sample that ends its workers is refused.",
        json_schema_extra=live(1, 1000, "tries", "next failure"),
    )
    give_up_s: float = Field(
        600.0,
        gt=0,
        description="Time over which scoring must fail a sample, `max_tries` times and by no fault of its own (a "
        "sandbox service that is away, say), until it is refused, in seconds.",
        json_schema_extra=live(1.0, 86400.0, "s", "next failure"),
    )
    max_ready_mb: int = Field(
        512,
        ge=1,
        description="Bytes of waiting trajectories before generation pauses, in MiB.",
        json_schema_extra=live(1, 1 << 20, "MiB", "next prompt admitted"),
    )
    durable: Literal["process", "power"] = Field(
        "process", description="Survive kills of processes (WAL), or also power cuts (an fsync a transaction)."
    )

    @model_validator(mode="after")
    def _deterministic_is_synchronous(self) -> Self:
        if self.deterministic and self.max_staleness:
            raise ValueError("deterministic needs max_staleness: 0, for nothing may be generated ahead")
        return self

    @model_validator(mode="after")
    def _a_cohort_can_be_held(self) -> Self:
        most = max(self.evaluation.prompts if self.data.evaluation else 0, batch_size(self))
        if self.deterministic and most > MOST_HELD:
            raise ValueError(f"deterministic: one rollout holds a cohort of {most} samples, and can name {MOST_HELD}")
        return self

    def conflicts(self, others: Mapping[str, ServiceSpec]) -> Iterator[tuple[str, str]]:
        """Samples that nobody generates, scores or trains would wait for ever; so would tools that nobody has."""
        for part, does in (("rollout", "generate"), ("reward", "score"), ("learner", "train")):
            if not any(other.part == part and other.replicas for other in others.values()):
                yield "kind", f"no slot of kind {part}: there is nobody to {does} samples"
        for name, other in others.items():
            if other.part == "learner" and (why := too_large(self, getattr(other, "prefetch", 1))):
                yield "prompts_per_rollout", f"{why} ({name}.prefetch)"
            if self.max_turns > 1 and not getattr(other, "has_interact", True):
                file = getattr(other, "file", "its file")
                yield "max_turns", f"{name}.file {file} does not define interact(messages), which answers the model"


def batch_size(config: LedgerConfig) -> int:
    """Samples in a batch."""
    return config.prompts_per_rollout * config.responses_per_prompt


def too_large(config: LedgerConfig, prefetch: int) -> str:
    """Why a learner that takes so many batches ahead cannot name all that it would hold; "" if it can."""
    most, size = MOST_HELD // (prefetch + 1), batch_size(config)
    return f"a batch of {size} samples: a learner that holds {prefetch + 1} can name {most} of each" * (size > most)
