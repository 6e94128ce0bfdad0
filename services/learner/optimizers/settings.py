"""Every choice of one optimizer, as plain values, and the learning rate of each batch."""

import math
from dataclasses import dataclass
from typing import Literal

Name = Literal["adamw", "sgd", "muon", "lamb", "adamw_8bit"]
Schedule = Literal["constant", "cosine", "linear", "wsd"]


@dataclass(frozen=True, slots=True)
class LookaheadSettings:
    """Every `k` updates the slow weights go the share `alpha` of the way to the fast ones."""

    k: int = 5
    alpha: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimSettings:
    """An update rule and its schedule; steps are batches, not optimizer updates.

    lr: peak. weight_decay: on matrices only. betas, eps: adamw, lamb. momentum: sgd and muon. max_grad_norm: global L2.
    total_steps: where a schedule that falls reaches min_lr_ratio * lr; needed for all but constant. decay_share:
    of total_steps, in which wsd falls. Raises ValueError for a schedule that has no room.
    """

    name: Name = "adamw"
    lr: float = 1e-6
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95
    warmup_steps: int = 5
    schedule: Schedule = "constant"
    total_steps: int | None = None
    min_lr_ratio: float = 0.0
    decay_share: float = 0.2
    max_grad_norm: float = 1.0
    lookahead: LookaheadSettings | None = None

    def __post_init__(self) -> None:
        if self.schedule != "constant" and (self.total_steps or 0) <= self.warmup_steps:
            raise ValueError(f"schedule {self.schedule} needs total_steps larger than warmup_steps")


def lr_factor(step: int, settings: OptimSettings) -> float:
    """Share of the peak learning rate in batch `step` (0-based): (step + 1) / warmup_steps, then the schedule.

    cosine: Loshchilov 2017 (SGDR, equation 5) without restarts. wsd: Hu 2024 (MiniCPM, equation 1) with a linear decay.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant" or settings.total_steps is None:
        return 1.0
    begin, end = settings.warmup_steps, settings.total_steps
    if settings.schedule == "wsd":
        begin = max(begin, end - max(1, round(settings.decay_share * end)))
    progress = min(1.0, max(0.0, (step - begin) / (end - begin)))
    left = (1 + math.cos(math.pi * progress)) / 2 if settings.schedule == "cosine" else 1 - progress
    return settings.min_lr_ratio + (1 - settings.min_lr_ratio) * left
