"""The value function's loss, and statistics of advantages."""

import torch
from torch import Tensor

EPSILON = 1e-8


def value_loss(value: Tensor, old: Tensor, target: Tensor, clip: float | None = None) -> Tensor:
    """Half the squared error per step; with `clip`, the worse of it and that of a value moved at most so far.

    max((V - R)^2, (old + clamp(V - old, +-clip) - R)^2) / 2 (PPO's reference code; RL2 clips at 0.5). `old` is V before
    the update, and is constant, as is the target R.
    """
    error = (value - target).square()
    if clip is not None:
        kept = old + (value - old).clamp(-clip, clip)
        error = torch.maximum(error, (kept - target).square())
    return error / 2


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8) over the counted entries, unbiased; 0 elsewhere. One entry or none: 0."""
    count = mask.sum()
    kept = torch.where(mask, x, 0.0)
    mean = kept.sum() / count.clamp(min=1)
    centred = torch.where(mask, x - mean, 0.0)
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    return centred * (variance + EPSILON).rsqrt()


def explained_variance(value: Tensor, target: Tensor) -> float:
    """1 - var(R - V) / var(R): 1 for a perfect critic, 0 for a constant one, below for worse; 0 if R is constant."""
    spread = float(target.var(correction=0)) if len(target) else 0.0
    return 1.0 - float((target - value).var(correction=0)) / spread if spread > 0 else 0.0
