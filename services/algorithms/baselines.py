"""Critic-free advantages: a sequence's reward against its group, and KL penalties folded in.

Names and formulas: dr_grpo (Liu 2025, arXiv 2503.20783), grpo (Shao 2024, arXiv 2402.03300), rloo (Kool 2019,
Ahmadian 2024), reinforce with a batch baseline, opo (arXiv 2505.23585), maxrl (arXiv 2602.02710), reinforce_pp and its
baseline form (REINFORCE++, arXiv 2501.03262, undiscounted), and ema, which compares with what came before. Computed in
float64. A group of one has no baseline: its advantage is 0 and it is counted, never the raw reward and never NaN.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

Estimator = Literal[
    "dr_grpo", "grpo", "rloo", "opo", "maxrl", "reinforce", "reinforce_pp", "reinforce_pp_baseline", "ema"
]
GROUP_FREE: Final[frozenset[Estimator]] = frozenset({"reinforce", "reinforce_pp", "ema"})
"""Estimators that need no second response to a prompt."""

STD_EPSILON = 1e-6
"""Added to a standard deviation before dividing by it."""
VAR_EPSILON = 1e-8
"""Added to a variance of tokens before dividing by its root."""


@dataclass(frozen=True, slots=True)
class Advantages:
    """values float64 [N], one per sequence; how many groups there were, and how many taught nothing.

    singletons: groups of one member (advantage 0, except for reinforce, which has no groups);
    flat: groups of two or more whose rewards are all equal (advantage exactly 0).
    """

    values: Tensor
    groups: int
    singletons: int
    flat: int


def advantages(
    rewards: Tensor,
    group: Tensor,
    estimator: Estimator = "dr_grpo",
    norm_var: bool = False,
    lengths: Tensor | None = None,
    baseline: float | None = None,
) -> Advantages:
    """Advantage of each of N sequences. rewards float [N]; group int64 [N], any labels.

    dr_grpo: R - mean_g. grpo, and dr_grpo with norm_var: that over (std_g + 1e-6), unbiased std.
    rloo: R - mean of the others in g. opo: R - mean_g weighed by lengths. maxrl: (R - mean_g) / mean_g, 0 where that
    mean is not positive. reinforce: R - batch mean, with norm_var over the batch std. reinforce_pp: R whitened over all
    action tokens of the batch; reinforce_pp_baseline: R - mean_g, whitened so. ema: R - baseline (`moved`), the batch's
    own mean when there is none yet; norm_var says nothing to it.
    lengths int [N]: action tokens of each sequence, for opo and the last two; 1 each when omitted.
    """
    reward = rewards.double()
    length = torch.ones_like(reward) if lengths is None else lengths.double()
    _, index, size = torch.unique(group, return_inverse=True, return_counts=True)
    flat, count = _flat(reward, index, len(size)), size.double()
    if estimator in GROUP_FREE:
        index = torch.zeros_like(index)
        values = _against_mean(reward, index, reward.new_tensor([len(reward)]), norm_var)
        values = _whitened(reward, length) if estimator == "reinforce_pp" else values
        if estimator != "ema" or baseline is None:
            values = torch.where((reward == reward[:1]).all(), 0.0, values)
        else:
            values = reward - baseline
    else:
        values = _of_groups(reward, index, count, length, estimator, norm_var)
        values = torch.where(flat[index], 0.0, values)
        if estimator == "reinforce_pp_baseline":
            values = torch.where(flat[index], 0.0, _whitened(values, length))
    singletons = int((size == 1).sum())
    return Advantages(values, len(size), singletons, int(flat.sum()) - singletons)


def _of_groups(
    reward: Tensor, index: Tensor, count: Tensor, length: Tensor, estimator: Estimator, norm_var: bool
) -> Tensor:
    zeros = torch.zeros_like(count)
    if estimator == "opo":
        weight = zeros.index_add(0, index, length).clamp(min=1)
        return reward - (zeros.index_add(0, index, length * reward) / weight)[index]
    values = _against_mean(reward, index, count, norm_var or estimator == "grpo")
    if estimator == "rloo":
        return values * (count / (count - 1).clamp(min=1))[index]
    if estimator == "maxrl":
        mean = (zeros.index_add(0, index, reward) / count)[index]
        return torch.where(mean > 0, values / mean.clamp(min=STD_EPSILON), 0.0)
    return values


def _whitened(values: Tensor, length: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8) over tokens, each holding its sequence's value; unbiased variance."""
    tokens = length.sum()
    centred = values - (length * values).sum() / tokens.clamp(min=1)
    variance = (length * centred.square()).sum() / (tokens - 1).clamp(min=1)
    return centred * (variance + VAR_EPSILON).rsqrt()


def moved(baseline: float | None, rewards: Tensor, decay: float) -> float:
    """The exponential mean of the batches' mean rewards, after one more; it begins with the first."""
    mean = float(rewards.double().mean())
    return mean if baseline is None else decay * baseline + (1 - decay) * mean


def count_groups(rewards: Tensor, group: Tensor, values: Tensor) -> Advantages:
    """`Advantages` of values that no group baseline made, with the groups counted all the same."""
    _, index, size = torch.unique(group, return_inverse=True, return_counts=True)
    singletons = int((size == 1).sum())
    return Advantages(values, len(size), singletons, int(_flat(rewards.double(), index, len(size)).sum()) - singletons)


def fold_kl(rewards: Tensor, k1: Tensor, sequence: Tensor, coef: float) -> Tensor:
    """R_i - coef * (sum of k1 over sequence i): the KL penalty as a reward on every action token.

    rewards [N]; k1 [A] nats, its masked tokens 0; sequence int64 [A] indexes rewards. Returns float64 [N].
    """
    return rewards.double().index_add(0, sequence, k1.double(), alpha=-coef)


def _against_mean(reward: Tensor, index: Tensor, count: Tensor, norm_var: bool) -> Tensor:
    zeros = torch.zeros_like(count, dtype=torch.float64)
    mean = zeros.index_add(0, index, reward) / count
    centred = reward - mean[index]
    if not norm_var:
        return centred
    variance = zeros.index_add(0, index, centred.square()) / (count - 1).clamp(min=1)
    return centred / (variance.sqrt() + STD_EPSILON)[index]


def _flat(reward: Tensor, index: Tensor, groups: int) -> Tensor:
    """bool [groups]: all rewards equal, so the advantage is exactly 0 and not a rounding error over epsilon."""
    base = reward.new_zeros(groups)
    low = base.scatter_reduce(0, index, reward, "amin", include_self=False)
    high = base.scatter_reduce(0, index, reward, "amax", include_self=False)
    return low == high
