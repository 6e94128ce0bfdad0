"""Off-policy corrections: detached weights in front of a token's loss, and masks that take tokens out of it.

Every function reads x = log pi - log mu of each action token (`ratios.log_ratio`: clamped, 0 where masked), float [A],
with pi the policy the weight is for, usually pi_old, and mu that which drew the token. `sequence` int64 [A] says whose
token it is, ascending; `mask` bool [A] which tokens count. Weights are float [A], masks bool [A], true where kept, and
both say nothing of tokens outside `mask`. Tokens taken out stay in the denominators of the loss (`aggregate`): a mask
must not enlarge the step of the others.
"""

import math

import torch
from torch import Tensor

from .ratios import LOG_LIMIT

BAND = (0.5, 5.0)
"""Ratios that a token band keeps (IcePop, arXiv 2510.18855)."""


def token_weight(x: Tensor, cap: float = 2.0) -> Tensor:
    """min(rho_t, cap): truncated importance sampling, token by token (TIS; Ionides 2008)."""
    return x.detach().exp().clamp(max=cap)


def sequence_weight(x: Tensor, sequence: Tensor, mask: Tensor, cap: float = 2.0) -> Tensor:
    """min(prod_t rho_t, cap) of the token's sequence: the least biased of the bounded ones, and the widest spread."""
    return _sums(x.detach(), sequence, mask).clamp(-LOG_LIMIT, LOG_LIMIT).exp().clamp(max=cap)


def token_band(x: Tensor, low: float = BAND[0], high: float = BAND[1]) -> Tensor:
    """Keep low <= rho_t <= high (IcePop; masked importance sampling)."""
    return _within(x, low, high)


def sequence_band(x: Tensor, sequence: Tensor, mask: Tensor, low: float = 0.0, high: float = 2.0) -> Tensor:
    """Keep sequences whose product of ratios lies in [low, high]. Rejects long ones first: watch `kept_by_length`."""
    return _within(_sums(x, sequence, mask), low, high)


def geometric_band(x: Tensor, sequence: Tensor, mask: Tensor, low: float = 0.99, high: float = 1.01) -> Tensor:
    """Keep sequences whose geometric mean of ratios lies in [low, high], whatever their length."""
    return _within(_means(x, sequence, mask), low, high)


def trust_region_mask(
    x: Tensor, sequence: Tensor, mask: Tensor, most: float | None = None, mean: float | None = None
) -> Tensor:
    """TRM (arXiv 2512.23075): keep sequences whose tokens' k3 is at most `most`, and on average at most `mean`.

    k3 = exp(x) - 1 - x estimates KL(mu || pi) from a token that mu drew; None leaves a bound out.
    """
    k3 = torch.where(mask, torch.expm1(x) - x, 0.0)
    keep = torch.ones_like(mask)
    if most is not None:
        keep &= _by_sequence(k3, sequence, "amax") <= most
    if mean is not None:
        keep &= _means(k3, sequence, mask) <= mean
    return keep


def opsm(x: Tensor, sequence: Tensor, mask: Tensor, advantage: Tensor, delta: float = 0.5) -> Tensor:
    """Off-policy sequence masking (DeepSeek-V3.2, eq. 9): drop bad sequences that pi has moved away from.

    Dropped are those with a negative mean advantage and mean(log mu - log pi) > delta nats.
    """
    bad = _means(torch.where(mask, advantage, 0.0), sequence, mask) < 0
    return ~(bad & (-_means(x, sequence, mask) > delta))


def m2po(x: Tensor, mask: Tensor, threshold: float = 0.04) -> Tensor:
    """Second-moment trust (arXiv 2510.01161): drop the tokens of largest x^2 until the mean of the rest is below.

    At least one token is kept. Needs no clip beside it.
    """
    squares = torch.where(mask, x.double().square(), math.inf)
    ordered, order = squares.sort(stable=True)
    count = int(mask.sum())
    running = ordered[:count].cumsum(0) / torch.arange(1, count + 1, device=x.device)
    kept = max(1, int((running < threshold).sum())) if count else 0
    keep = torch.zeros_like(mask)
    keep[order[:kept]] = True
    return keep


def kept_by_length(kept: Tensor, counted: Tensor) -> tuple[float, float]:
    """Share of tokens kept in the shorter and in the longer half of the sequences: a wide gap is the length trap.

    kept, counted: tokens of each sequence, [S]; those without a counted one are left out.
    """
    kept, counted = kept[counted > 0], counted[counted > 0]
    longer = counted > counted.median() if len(counted) else counted > 0
    shares = [float(kept[half].sum() / counted[half].sum()) if bool(half.any()) else 1.0 for half in (~longer, longer)]
    return shares[0], shares[1]


def _within(x: Tensor, low: float, high: float) -> Tensor:
    return (x >= (math.log(low) if low > 0 else -math.inf)) & (x <= math.log(high))


def _sums(x: Tensor, sequence: Tensor, mask: Tensor) -> Tensor:
    return _by_sequence(torch.where(mask, x, 0.0), sequence, "sum")


def _means(x: Tensor, sequence: Tensor, mask: Tensor) -> Tensor:
    return _sums(x, sequence, mask) / _by_sequence(mask.to(x.dtype), sequence, "sum").clamp(min=1)


def _by_sequence(x: Tensor, sequence: Tensor, how: str) -> Tensor:
    """A statistic of each sequence, at each of its tokens."""
    _, index = torch.unique_consecutive(sequence, return_inverse=True)
    groups = int(index[-1]) + 1 if len(index) else 0
    total = x.new_zeros(groups).scatter_reduce(0, index, x, how, include_self=False)
    return total[index]
