"""Policy-gradient losses per token under two drifts: behaviour mu -> proximal pi_old -> current pi.

Exactly one correction applies: a ratio against mu (the anchor of most losses here), or a weight pi_old / mu times a
ratio against pi_old (decoupled PPO). All tensors are [A]; log-probs in nats; `mask` false slots may hold NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from torch import Tensor

from . import corrections, surrogates
from .ratios import log_ratio, truncated

LossKind = Literal["decoupled_ppo", "bypass_ppo", "ppo", "tis", "sequence_tis", "cispo", "gspo", "dppo", "sapo", "topr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Scored action tokens, [A], and how far a ratio may go.

    logp: under pi, with the gradient. proximal: under pi_old. behaviour: under mu. sequence: whose token it is,
    ascending. clip_low, clip_high: range of a clip below and above 1. cap: of a truncated weight.
    """

    logp: Tensor
    proximal: Tensor
    behaviour: Tensor
    advantage: Tensor
    mask: Tensor
    sequence: Tensor
    clip_low: float = 0.2
    clip_high: float = 0.2
    cap: float = 2.0


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


def token_loss(kind: LossKind, tokens: Sampled) -> TokenLoss:
    """The loss of a name; LOSSES says which function that is."""
    return LOSSES[kind](tokens)


def bypass_ppo(t: Sampled) -> TokenLoss:
    """PPO clip around the behaviour policy, r = pi / mu (Schulman 2017, eq. 7 with mu as the old policy)."""
    return _clipped(t, t.behaviour)


def ppo(t: Sampled) -> TokenLoss:
    """PPO clip around pi_old and no word of mu: for advantages that hold the ratio pi_old / mu, as V-trace's do."""
    return _clipped(t, t.proximal)


def decoupled_ppo(t: Sampled) -> TokenLoss:
    """min(pi_old / mu, cap) times the PPO clip around pi_old (Hilton 2021, arXiv 2110.00641; AReaL)."""
    drift = log_ratio(t.proximal, t.behaviour, t.mask)
    inner = _clipped(t, t.proximal)
    return _weighted(inner, truncated(drift, t.cap), (drift.exp() > t.cap) & t.mask)


def tis(t: Sampled) -> TokenLoss:
    """Truncated importance sampling: -min(pi / mu, cap) A log pi, the weight detached."""
    x, logp, advantage = _prepared(t, t.behaviour)
    ratio = x.detach().exp()
    bare = _plain(surrogates.reinforce(logp, advantage), ratio)
    return _weighted(bare, truncated(x, t.cap), (ratio > t.cap) & t.mask)


def sequence_tis(t: Sampled) -> TokenLoss:
    """-min(prod pi / mu over the sequence, cap) A log pi: less biased than token by token, and noisier."""
    x, logp, advantage = _prepared(t, t.behaviour)
    weight = corrections.sequence_weight(x, t.sequence, t.mask, t.cap)
    bare = _plain(surrogates.reinforce(logp, advantage), x.detach().exp())
    return _weighted(bare, weight, (weight >= t.cap) & t.mask)


def cispo(t: Sampled) -> TokenLoss:
    """`surrogates.cispo` against mu, its upper clip at the cap, its lower end open."""
    x, logp, advantage = _prepared(t, t.behaviour)
    ratio = x.detach().exp()
    loss = surrogates.cispo(x, logp, advantage, 1.0, t.cap - 1.0)
    return _plain(loss, ratio, capped=(ratio > t.cap) & t.mask)


def gspo(t: Sampled) -> TokenLoss:
    """`surrogates.gspo` against mu, clipped by clip_low and clip_high (3e-4 and 4e-4 in its paper)."""
    x, _, advantage = _prepared(t, t.behaviour)
    loss = surrogates.gspo(x, advantage, t.sequence, t.mask, t.clip_low, t.clip_high)
    shared = surrogates.sequence_mean(x, t.sequence, t.mask).exp()
    return _flagged(_plain(loss, x.detach().exp()), *_outside(shared, advantage, t))


def dppo(t: Sampled) -> TokenLoss:
    """`surrogates.dppo` against mu; clip_low is the most that a token's probability may have moved."""
    x, logp, advantage = _prepared(t, t.behaviour)
    anchor = torch.where(t.mask, t.behaviour, 0.0)
    up, down = surrogates.beyond(logp, anchor, advantage, t.clip_low)
    return _flagged(_plain(surrogates.dppo(x, logp, anchor, advantage, t.clip_low), x.detach().exp()), down, up)


def sapo(t: Sampled) -> TokenLoss:
    """`surrogates.sapo` against mu."""
    x, _, advantage = _prepared(t, t.behaviour)
    return _plain(surrogates.sapo(x, advantage), x.detach().exp())


def topr(t: Sampled) -> TokenLoss:
    """`surrogates.topr` against mu."""
    x, logp, advantage = _prepared(t, t.behaviour)
    return _plain(surrogates.topr(x, logp, advantage), x.detach().exp())


LOSSES: Final[dict[LossKind, Callable[[Sampled], TokenLoss]]] = {
    "decoupled_ppo": decoupled_ppo,
    "bypass_ppo": bypass_ppo,
    "ppo": ppo,
    "tis": tis,
    "sequence_tis": sequence_tis,
    "cispo": cispo,
    "gspo": gspo,
    "dppo": dppo,
    "sapo": sapo,
    "topr": topr,
}
USES_PROXIMAL: Final[frozenset[LossKind]] = frozenset({"decoupled_ppo", "ppo"})
"""Losses that read pi_old; for the others it need not be computed."""


def _prepared(t: Sampled, anchor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log ratio against the anchor, log pi, advantage), 0 where masked; advantages are constants."""
    advantage = torch.where(t.mask, t.advantage, 0.0).detach()
    return log_ratio(t.logp, anchor, t.mask), torch.where(t.mask, t.logp, 0.0), advantage


def _clipped(t: Sampled, anchor: Tensor) -> TokenLoss:
    x, _, advantage = _prepared(t, anchor)
    now = x.detach().exp()
    low, high = _outside(now, advantage, t)
    return TokenLoss(
        loss=surrogates.ppo(x, advantage, t.clip_low, t.clip_high),
        ratio=now,
        weight=torch.ones_like(now),
        clipped_low=low,
        clipped_high=high,
        capped=torch.zeros_like(t.mask),
    )


def _outside(ratio: Tensor, advantage: Tensor, t: Sampled) -> tuple[Tensor, Tensor]:
    """Where PPO's clip takes the gradient away, below and above."""
    return (ratio < 1 - t.clip_low) & (advantage < 0), (ratio > 1 + t.clip_high) & (advantage > 0)


def _flagged(inner: TokenLoss, low: Tensor, high: Tensor) -> TokenLoss:
    return replace(inner, clipped_low=low, clipped_high=high)


def _plain(loss: Tensor, ratio: Tensor, capped: Tensor | None = None) -> TokenLoss:
    never = torch.zeros_like(ratio, dtype=torch.bool)
    return TokenLoss(loss, ratio, torch.ones_like(ratio), never, never, never if capped is None else capped)


def _weighted(inner: TokenLoss, weight: Tensor, capped: Tensor) -> TokenLoss:
    return TokenLoss(weight * inner.loss, inner.ratio, weight, inner.clipped_low, inner.clipped_high, capped)
