"""The numbers a ledger is run by: sizes, bounds and times. Plain values, so that a test can vary each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .states import StageName

DEFAULT_LEASE_S: dict[StageName, float] = {"generate": 30.0, "score": 30.0, "train": 300.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Everything `Book` decides by.

    prompts_per_rollout, responses_per_prompt: groups in a batch, samples in a group.
    max_staleness: batches that may be open ahead of the one in training; bounds the mean lag (AReaL's cap).
    version_slack: versions an engine may be behind the newest and still get tickets; None: `max_staleness`.
    max_lag: optimizer steps the oldest token of a sample may lag when its batch is formed; None: no bound.
    on_stale: beyond `max_lag` a sample is filtered ("drop") or trained all the same ("train").
    filter_zero_variance: filter groups whose members all have the same rewards.
    deterministic: generate each batch as one cohort (see `cohorts`); needs max_staleness 0.
    max_ready_bytes: bytes of stored trajectories that wait; generation pauses at it, but one batch always fits.
    lease_s: seconds of silence after which a lease of each stage ends. credit_s: the same for a `want`.
    claim_s: seconds after a restart in which generate and score leases must be claimed. A batch has its lease time: a
        learner may be silent for a whole optimizer step and must not find its batch given away.
    solo_after, max_strikes: begun tries after which a sample is tried alone, and after which it is refused.
    give_up_s: seconds over which the infrastructure must fail a sample, `max_strikes` times, until it is refused.
    eval_every, eval_samples: policy versions between evaluation rounds, and samples in one; 0: no evaluation.
    """

    prompts_per_rollout: int
    responses_per_prompt: int
    max_staleness: int = 1
    version_slack: int | None = None
    max_lag: int | None = None
    on_stale: Literal["drop", "train"] = "drop"
    filter_zero_variance: bool = False
    deterministic: bool = False
    max_ready_bytes: int = 512 << 20
    lease_s: Mapping[StageName, float] = field(default_factory=lambda: dict(DEFAULT_LEASE_S))
    credit_s: float = 2.0
    claim_s: float = 1.5
    solo_after: int = 2
    max_strikes: int = 4
    give_up_s: float = 600.0
    eval_every: int = 0
    eval_samples: int = 0

    def __post_init__(self) -> None:
        if self.prompts_per_rollout < 1 or self.responses_per_prompt < 1:
            raise ValueError("prompts_per_rollout and responses_per_prompt must be at least 1")
        if self.deterministic and self.max_staleness != 0:
            raise ValueError(f"deterministic needs max_staleness 0, not {self.max_staleness}: set it or drop the flag")
        if (self.eval_every > 0) != (self.eval_samples > 0):
            raise ValueError("eval_every and eval_samples must both be set, or neither")

    @property
    def batch(self) -> int:
        """Samples in a full batch."""
        return self.prompts_per_rollout * self.responses_per_prompt

    @property
    def slack(self) -> int:
        """Versions an engine may be behind the newest and still generate."""
        return self.max_staleness if self.version_slack is None else self.version_slack
