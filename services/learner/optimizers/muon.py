"""Muon: momentum made orthogonal, for the hidden matrices (Jordan 2024, https://kellerjordan.github.io/posts/muon).

torch.optim.Muon is the same rule, bit for bit, for a matrix in one piece; on one that is cut it would sum partial
products in bfloat16, and the update would depend on the number of ranks. Here each rank takes the whole matrix
together, does the same iteration, and keeps its part.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from midflight.services.learner.group.sharding import cut_like, whole

A, B, C = 3.4445, -4.7750, 2.0315
"""Of the quintic a x + b x^3 + c x^5, steepest at zero; singular values end between about 0.7 and 1.2."""
ITERATIONS = 5
TINY = 1e-7
RMS = 0.2
"""Root mean square of an update over its learning rate, AdamW's usual one (Liu 2025, arXiv 2502.16982, equation 4), so
that one learning rate serves the matrices and the rest."""


class Muon(torch.optim.Optimizer):
    """b = mu b + (1 - mu) g; u = NS((1 - mu) g + mu b); w -= lr * (weight_decay * w + RMS * sqrt(max(rows, cols)) * u).

    Every parameter is a matrix. State: `momentum_buffer`, cut as its parameter is.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"]
                buffer.lerp_(p.grad, 1 - momentum)
                update = cut_like(orthogonal(whole(p.grad.lerp(buffer, momentum))).to(p.dtype), p)
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * RMS * math.sqrt(max(p.shape)))


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of the matrix's U S V^T, by five Newton-Schulz steps; [rows, cols], bfloat16."""
    x = matrix.bfloat16()
    tall = matrix.shape[0] > matrix.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=TINY)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.T if tall else x
