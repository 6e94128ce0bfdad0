"""AdamW with warm-up, a schedule, gradient clipping, and a learning rate and weight decay settable live."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .sharding import cut_like, whole

Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimSettings:
    """AdamW (Loshchilov 2019) and its schedule; steps are batches, not optimizer updates.

    lr: peak. weight_decay: on matrices only. max_grad_norm: global L2. total_steps: where cosine reaches
    min_factor * lr; needed for cosine.
    """

    lr: float = 1e-6
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    warmup_steps: int = 5
    schedule: Schedule = "constant"
    total_steps: int | None = None
    min_factor: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule == "cosine" and (self.total_steps or 0) <= self.warmup_steps:
            raise ValueError("schedule cosine needs total_steps larger than warmup_steps")


def lr_factor(step: int, settings: OptimSettings) -> float:
    """Share of the peak learning rate in batch `step` (0-based): (step + 1) / warmup_steps, then the schedule."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant" or settings.total_steps is None:
        return 1.0
    progress = (step - settings.warmup_steps) / (settings.total_steps - settings.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return settings.min_factor + (1 - settings.min_factor) * cosine


class PolicyOptimizer:
    """Optimizer of one module. Per batch: `advance`, then per update `zero_grad`, backward, `update`.

    `lr` (peak) and `weight_decay` may be assigned between batches; they act from the next `advance` on.
    """

    def __init__(self, module: nn.Module, settings: OptimSettings) -> None:
        self.settings = settings
        self.lr = settings.lr
        self.weight_decay = settings.weight_decay
        self.step = 0
        """Batches begun."""
        self.names = {p: name for name, p in module.named_parameters() if p.requires_grad}
        groups = [
            {"params": [p for p in self.names if p.dim() >= 2]},
            {"params": [p for p in self.names if p.dim() < 2]},
        ]
        self.adam = torch.optim.AdamW(groups, lr=self.lr, betas=settings.betas, eps=settings.eps, fused=True)

    def advance(self) -> float:
        """Begin a batch: apply schedule, learning rate and weight decay; returns the learning rate in use."""
        rate = self.lr * lr_factor(self.step, self.settings)
        self.step += 1
        matrices, vectors = self.adam.param_groups
        matrices.update(lr=rate, weight_decay=self.weight_decay)
        vectors.update(lr=rate, weight_decay=0.0)
        return rate

    def zero_grad(self) -> None:
        """Drop gradients."""
        self.adam.zero_grad(set_to_none=True)

    def norm(self) -> float:
        """Clip the gradients and return their norm before that; nothing is applied."""
        return whole(nn.utils.clip_grad_norm_(list(self.names), self.settings.max_grad_norm)).item()

    def update(self) -> float:
        """Clip, step, and return the gradient norm before clipping; with a non-finite norm nothing is applied."""
        norm = self.norm()
        if math.isfinite(norm):
            self.adam.step()
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Moments and update counts as `<parameter>/<exp_avg | exp_avg_sq | step>`; not copied."""
        state = self.adam.state
        return {f"{name}/{key}": x for p, name in self.names.items() for key, x in state.get(p, {}).items()}

    def values(self) -> dict[str, Any]:
        """The rest of the state, JSON-able."""
        return {"step": self.step, "lr": self.lr, "weight_decay": self.weight_decay}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what `tensors` and `values` gave; raises ValueError for a parameter this module lacks."""
        parameters = {name: p for p, name in self.names.items()}
        state: dict[Tensor, dict[str, Tensor]] = {}
        for full, value in tensors.items():
            name, _, key = full.rpartition("/")
            if name not in parameters:
                raise ValueError(f"optimizer state of {name}, which the model does not have")
            parameter = parameters[name]
            # Moments are cut as their parameter is; the count of updates is a number.
            state.setdefault(parameter, {})[key] = (
                value.to(parameter.device) if key == "step" else cut_like(value, parameter)
            )
        self.step, self.lr = int(values["step"]), float(values["lr"])
        self.weight_decay = float(values["weight_decay"])
        self.adam.state.clear()
        self.adam.state.update(state)
