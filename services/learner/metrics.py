"""Sums over the tokens of an update, turned into named numbers at its end.

Every mean is over all unmasked action tokens of the batch, whatever the micro-batches were.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from midflight.services.algorithms.corrections import kept_by_length
from midflight.services.algorithms.losses import TokenLoss
from midflight.services.algorithms.masks import together
from midflight.services.algorithms.ratios import LOG_LIMIT, effective_sample_size

TOKEN_MEANS = (
    "policy_loss",
    "entropy",
    "ratio_mean",
    "clip_low",
    "clip_high",
    "weight_mean",
    "weight_capped",
    "mismatch_k1",
    "mismatch_k3",
    "kl",
    "lag_mean",
)
"""Per-token quantities reported as means, in the order `Tally.add` stacks them."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """Numbers of one step, by name."""

    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """Detached per-token quantities of one micro-batch, all [A].

    drift: log(pi_old / mu), or log(pi / mu) where pi_old was not computed (nats). kl: k3 of pi against the
    reference, 0 without one. lag: current version minus the token's. sequence: row of the batch. kept: by name of a
    mask, bool [A], what it keeps. logp, behaviour: log-probs (nats) under pi and mu.
    """

    loss: TokenLoss
    logp: Tensor
    behaviour: Tensor
    advantage: Tensor
    entropy: Tensor
    drift: Tensor
    kl: Tensor
    lag: Tensor
    sequence: Tensor
    mask: Tensor
    kept: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class LogprobGap:
    """How far the engine's log-probs are from the learner's own, where both are of the very same weights.

    Those are the tokens of sequences without lag, before the first update of a batch moves the policy. In a sequence
    that was there at an update, later tokens are of new weights over keys and values of old ones.
    """

    tokens: int = 0
    total: float = 0.0
    most: float = 0.0
    k3: float = 0.0

    def add(self, r: TokenRecord) -> None:
        """Add a micro-batch of the first update."""
        stale = r.lag.new_zeros(int(r.sequence.max()) + 1 if len(r.sequence) else 0)
        stale.scatter_reduce_(0, r.sequence, r.lag, "amax")
        gap = (r.logp - r.behaviour)[r.mask & (stale[r.sequence] == 0)].double()
        if gap.numel():
            self.tokens += gap.numel()
            self.total += gap.abs().sum().item()
            self.most = max(self.most, gap.abs().max().item())
            self.k3 += (torch.expm1(gap) - gap).sum().item()

    def report(self) -> dict[str, float]:
        """Mean and largest absolute gap, and its k3, in nats; empty without a sequence of lag 0."""
        if not self.tokens:
            return {}
        found = {"mean": self.total / self.tokens, "max": self.most, "k3": self.k3 / self.tokens}
        return {f"logprob_gap/{name}": value for name, value in found.items()}


@dataclass(slots=True)
class Tally:
    """Running sums of one batch of `sequences` rows."""

    sequences: int
    sums: Tensor | None = None
    weights: Tensor | None = None
    drift: Tensor | None = None
    peaks: list[Tensor] = field(default_factory=list)
    unmasked: int = 0
    masked: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    by_sequence: Tensor | None = None
    """Tokens kept by every mask, and tokens counted, of each row [2, sequences]."""

    def add(self, r: TokenRecord) -> None:
        """Add a micro-batch."""
        if not r.mask.numel():
            return
        weight, squared = r.drift.exp(), (2 * r.drift).exp()
        values = (
            r.loss.loss.detach(),
            r.entropy.detach(),
            r.loss.ratio,
            r.loss.clipped_low.float(),
            r.loss.clipped_high.float(),
            r.loss.weight,
            r.loss.capped.float(),
            -r.drift,
            torch.expm1(r.drift) - r.drift,
            r.kl,
            r.lag.float(),
        )
        rows = torch.where(r.mask, torch.stack([*values, weight, squared]), 0.0)
        sums = rows.double().sum(1)
        self.sums = sums if self.sums is None else self.sums + sums
        drift = torch.where(r.mask, r.drift, 0.0).double()
        zero = drift.new_zeros(self.sequences) if self.drift is None else self.drift
        self.drift = zero.index_add(0, r.sequence, drift)
        top = torch.stack([r.loss.ratio, r.drift.abs(), r.lag.float()])
        self.peaks.append(torch.where(r.mask, top, 0.0).amax(1))
        counted = int(r.mask.sum())
        self.unmasked += counted
        self.masked += r.mask.numel() - counted
        if r.kept:
            everything = together(r.kept, r.mask)
            for name, keep in (*r.kept.items(), ("all", everything)):
                self.kept[name] += int((keep & r.mask).sum())
            tokens = torch.stack([everything, r.mask]).double()
            rows = tokens.new_zeros(2, self.sequences) if self.by_sequence is None else self.by_sequence
            self.by_sequence = rows.index_add(1, r.sequence, tokens)

    def report(self) -> dict[str, float]:
        """Means, maxima and effective sample sizes; empty when no token was added.

        ess: over tokens; ess_sequence: over sequences, weight = product of token ratios. Both in (0, 1].
        """
        if self.sums is None or self.drift is None or not self.unmasked:
            return {"action_tokens": 0.0, "masked_tokens": float(self.masked)}
        *means, weight, squared = self.sums.tolist()
        ratio_max, mismatch_max, lag_max = torch.stack(self.peaks).amax(0).tolist()
        n = self.unmasked
        return {
            **{name: value / n for name, value in zip(TOKEN_MEANS, means, strict=True)},
            "ratio_max": ratio_max,
            "mismatch_max": mismatch_max,
            "lag_max": lag_max,
            "ess": weight * weight / (n * squared),
            "ess_sequence": effective_sample_size(self.drift.clamp(-LOG_LIMIT, LOG_LIMIT).exp()).item(),
            "action_tokens": float(n),
            "masked_tokens": float(self.masked),
            **self._kept(),
        }

    def _kept(self) -> dict[str, float]:
        """Shares of tokens that masks keep; kept_short and kept_long: in the shorter and the longer sequences."""
        if self.by_sequence is None:
            return {}
        short, long = kept_by_length(*self.by_sequence)
        named = {f"kept_{name}": count / self.unmasked for name, count in self.kept.items()}
        return {**named, "kept_short": short, "kept_long": long}
