"""Estimators of KL(pi || ref) from one sampled token: k1, k2, k3 (Schulman 2020, "Approximating KL divergence").

With x = log pi(a) - log ref(a) and a ~ pi:  k1 = x,  k2 = x^2 / 2,  k3 = exp(-x) - 1 + x. Used as a value
(reward, metric) k1 and k3 are unbiased. Used as a loss only k2 has the gradient of KL(pi || ref); k1 has
gradient zero in expectation, and k3 has the gradient of KL(ref || pi), which is what the GRPO paper minimises.
"""

from typing import Literal

import torch
from torch import Tensor

from .ratios import log_ratio

KlEstimator = Literal["k1", "k2", "k3"]

K3_LIMIT = 10.0
"""k3 grows as exp(-x); a single token may not outweigh a batch."""


def kl_estimate(logp: Tensor, reference: Tensor, estimator: KlEstimator, mask: Tensor | None = None) -> Tensor:
    """Per-token estimate in nats, shape of `logp`, differentiable in `logp`; exactly 0 where `mask` is false.

    x is clamped to +-20 and k3 to K3_LIMIT; the gradient is zero where a clamp acts.
    """
    x = log_ratio(logp, reference, mask)
    if estimator == "k1":
        return x
    if estimator == "k2":
        return x.square() / 2
    return (torch.expm1(-x) + x).clamp(max=K3_LIMIT)
