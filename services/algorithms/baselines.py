"""Critic-free advantages: a sequence's reward against its group, and KL penalties folded in.

Names and formulas: dr_grpo (Liu 2025, arXiv 2503.20783), grpo (Shao 2024, arXiv 2402.03300), rloo (Kool 2019,
Ahmadian 2024), reinforce with a batch baseline. Computed in float64. A group of one has no baseline: its
advantage is 0 and it is counted, never the raw reward and never NaN.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["dr_grpo", "grpo", "rloo", "reinforce"]

STD_EPSILON = 1e-6
"""Added to a standard deviation before dividing by it."""


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


def advantages(rewards: Tensor, group: Tensor, estimator: Estimator = "dr_grpo", norm_var: bool = False) -> Advantages:
    """Advantage of each of N sequences. rewards float [N]; group int64 [N], any labels.

    dr_grpo: R - mean_g. grpo, and dr_grpo with norm_var: that over (std_g + 1e-6), unbiased std.
    rloo: R - mean of the others in g. reinforce: R - batch mean, with norm_var over the batch std.
    """
    reward = rewards.double()
    _, index, size = torch.unique(group, return_inverse=True, return_counts=True)
    flat = _flat(reward, index, len(size))
    if estimator == "reinforce":
        values = _against_mean(reward, torch.zeros_like(index), reward.new_tensor([len(reward)]), norm_var)
        values = torch.where((reward == reward[:1]).all(), 0.0, values)
    else:
        count = size.double()
        values = _against_mean(reward, index, count, norm_var or estimator == "grpo")
        if estimator == "rloo":
            values = values * (count / (count - 1).clamp(min=1))[index]
        values = torch.where(flat[index], 0.0, values)
    singletons = int((size == 1).sum())
    return Advantages(values, len(size), singletons, int(flat.sum()) - singletons)


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
