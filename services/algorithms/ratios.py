"""Importance ratios between policies, always from log-probs and never from probabilities."""

import torch
from torch import Tensor

LOG_LIMIT = 20.0
"""|log ratio| is cut here before exp: e^20 is still a finite, useless weight in float32, its square too."""


def log_ratio(numerator: Tensor, denominator: Tensor, mask: Tensor | None = None) -> Tensor:
    """log(numerator / denominator) per token from two log-probs (nats), clamped to +-LOG_LIMIT.

    Exactly 0, with zero gradient, where `mask` is false: masked slots may hold NaN or infinities.
    """
    if mask is not None:
        numerator = torch.where(mask, numerator, 0.0)
        denominator = torch.where(mask, denominator, 0.0)
    return (numerator - denominator).clamp(-LOG_LIMIT, LOG_LIMIT)


def between(current: Tensor, behaviour: Tensor, lag: Tensor) -> Tensor:
    """log pi_old without a forward pass: log mu + a (log pi - log mu), a = lag / (lag + 1), detached.

    A-3PO (arXiv 2512.06547, eq. 5): pi_old is one version behind pi and `lag` ahead of mu, and lies about there between
    them, token by token. current, behaviour: log-probs under pi and mu, nats. lag: versions, of each token, >= 0.
    """
    share = (lag / (lag + 1)).to(current.dtype)
    return behaviour + share * (current.detach() - behaviour)


def truncated(log_weight: Tensor, cap: float) -> Tensor:
    """min(exp(log_weight), cap), detached: truncated importance weight (Ionides 2008; TIS)."""
    return log_weight.detach().exp().clamp(max=cap)


def effective_sample_size(weights: Tensor) -> Tensor:
    """Kish's (sum w)^2 / (n sum w^2) in (0, 1] for weights [n]; 1 when all are equal; scalar."""
    total, squares = weights.sum(), weights.square().sum()
    return total.square() / (squares * max(1, weights.numel())).clamp(min=torch.finfo(weights.dtype).tiny)
