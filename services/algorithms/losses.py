"""Policy-gradient losses per token under two drifts: behaviour mu -> proximal pi_old -> current pi.

Exactly one correction applies: a ratio against mu (bypass PPO, TIS), or a weight pi_old / mu times a ratio
against pi_old (decoupled PPO). All tensors are [A]; log-probs in nats; `mask` false slots may hold NaN.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .ratios import log_ratio, truncated

LossKind = Literal["decoupled_ppo", "bypass_ppo", "tis"]


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """What a loss says about each token, [A]; everything but `loss` is detached.

    loss: to be minimised, 0 where masked. ratio: pi over what the loss clips around (mu for TIS).
    weight: detached importance weight in front (1 where the loss has none).
    clipped_low, clipped_high: bool, tokens whose gradient the clip removed, below and above.
    capped: bool, tokens whose weight met its cap.
    """

    loss: Tensor
    ratio: Tensor
    weight: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    capped: Tensor


def bypass_ppo(
    logp: Tensor, behaviour: Tensor, advantage: Tensor, mask: Tensor, clip_low: float, clip_high: float
) -> TokenLoss:
    """PPO clip around the behaviour policy: max(-r A, -clip(r, 1 - low, 1 + high) A) with r = pi / mu.

    Schulman 2017 eq. 7 with mu as the old policy; no proximal pass is needed.
    """
    return _clipped(log_ratio(logp, behaviour, mask), advantage, mask, clip_low, clip_high)


def decoupled_ppo(
    logp: Tensor,
    proximal: Tensor,
    behaviour: Tensor,
    advantage: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    tis_cap: float,
) -> TokenLoss:
    """min(pi_old / mu, cap) times the PPO clip around pi_old (Hilton 2021, arXiv 2110.00641; AReaL)."""
    drift = log_ratio(proximal, behaviour, mask)
    inner = _clipped(log_ratio(logp, proximal, mask), advantage, mask, clip_low, clip_high)
    weight = truncated(drift, tis_cap)
    return TokenLoss(
        loss=weight * inner.loss,
        ratio=inner.ratio,
        weight=weight,
        clipped_low=inner.clipped_low,
        clipped_high=inner.clipped_high,
        capped=(drift.exp() > tis_cap) & mask,
    )


def tis(logp: Tensor, behaviour: Tensor, advantage: Tensor, mask: Tensor, tis_cap: float) -> TokenLoss:
    """Truncated importance sampling: -min(pi / mu, cap) A log pi, the weight detached."""
    x = log_ratio(logp.detach(), behaviour, mask)
    weight = truncated(x, tis_cap)
    ratio = x.exp()
    never = torch.zeros_like(mask)
    kept = torch.where(mask, logp, 0.0)
    loss = -weight * _masked(advantage, mask) * kept
    return TokenLoss(loss, ratio, weight, never, never, (ratio > tis_cap) & mask)


def _clipped(x: Tensor, advantage: Tensor, mask: Tensor, low: float, high: float) -> TokenLoss:
    ratio = x.exp()
    adv = _masked(advantage, mask)
    loss = torch.maximum(-ratio * adv, -ratio.clamp(1 - low, 1 + high) * adv)
    now = ratio.detach()
    return TokenLoss(
        loss=loss,
        ratio=now,
        weight=torch.ones_like(now),
        clipped_low=(now < 1 - low) & (adv < 0),
        clipped_high=(now > 1 + high) & (adv > 0),
        capped=torch.zeros_like(mask),
    )


def _masked(advantage: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, advantage, 0.0).detach()
