"""LAMB: Adam's direction, as long as the layer's weights allow (You et al. 2020, arXiv 1904.00962, algorithm 2)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from midflight.services.learner.group.sharding import whole

MOST = 10.0
"""phi(z) = min(z, MOST): a layer's weights count as no longer than this (section 3 of the paper, gamma_u)."""


class Lamb(torch.optim.Optimizer):
    """m and v are Adam's moments; r = m^ / (sqrt(v^) + eps) + weight_decay * w; w -= lr * phi(|w|) / |r| * r.

    m^ = m / (1 - beta1^t) and v^ = v / (1 - beta2^t) come before the ratio: debiased behind it, the first step would be
    1 / (1 - beta1) times too long. Where |w| or |r| is 0 (a LoRA B at its start) the ratio is 1.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                r = _adam(p.grad, state, group["betas"], group["eps"]).add_(p, alpha=group["weight_decay"])
                p.sub_(r.mul_(trust_ratio(p, r)), alpha=group["lr"])


def _adam(grad: Tensor, state: dict[str, Tensor], betas: tuple[float, float], eps: float) -> Tensor:
    """m^ / (sqrt(v^) + eps) of Kingma 2015, algorithm 1; moves the moments in `state`."""
    state["step"] += 1
    steps = int(state["step"])
    m, v = state["exp_avg"], state["exp_avg_sq"]
    m.mul_(betas[0]).add_(grad, alpha=1 - betas[0])
    v.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    return (m / (1 - betas[0] ** steps)).div_((v / (1 - betas[1] ** steps)).sqrt_().add_(eps))


def trust_ratio(weight: Tensor, update: Tensor) -> Tensor:
    """phi(|w|) / |r|, a scalar; of the whole layer, however it is cut."""
    w, r = (whole(torch.linalg.vector_norm(x)) for x in (weight, update))
    return torch.where((w > 0) & (r > 0), w.clamp(max=MOST) / r, 1.0)
