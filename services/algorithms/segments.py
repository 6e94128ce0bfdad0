"""Coarser steps: a turn or a whole sequence as one step, and ratios that noise alone explains set to one.

Token by token, clipped traces decay with the number of tokens whatever happened (`estimators.trace_reach`). One ratio
a turn, the product of its tokens', is clipped once.
"""

from typing import Literal

import torch
from torch import Tensor

from .estimators import Estimate
from .steps import Steps
from .tokens import Actions

TraceLevel = Literal["token", "turn", "sequence"]


def segments(actions: Actions, level: TraceLevel) -> Tensor | None:
    """int64 [A], ascending: which actions make one step; None at token level, where each is its own."""
    return {"token": None, "turn": actions.turn, "sequence": actions.sequence}[level]


def collapse(steps: Steps, segment: Tensor) -> Steps:
    """Steps [A] to one step a segment: V before its first action and after its last, sums of rewards and log-ratios.

    No discount acts inside a segment. segment int64 [A], ascending.
    """
    _, index, count = torch.unique_consecutive(segment, return_inverse=True, return_counts=True)
    ends = count.cumsum(0) - 1
    starts = ends - count + 1

    def summed(x: Tensor) -> Tensor:
        return x.new_zeros(len(count)).index_add_(0, index, x)

    return Steps.of(
        summed(steps.rewards),
        steps.values[starts],
        steps.next_values[ends],
        steps.terminated[ends],
        steps.cut[ends],
        summed(steps.log_ratio),
    )


def spread(estimate: Estimate, segment: Tensor) -> Estimate:
    """An estimate a segment back to each of its actions, [A]."""
    index = torch.unique_consecutive(segment, return_inverse=True)[1]
    return Estimate(estimate.advantages[index], estimate.returns[index])


def dead_band(log_ratio: Tensor, width: float) -> Tensor:
    """Log-ratios within +-width nats to 0: the learner's and the engine's arithmetic differ that much on one policy.

    Three standard deviations of log pi - log mu at lag 0 are a sensible width.
    """
    return torch.where(log_ratio.abs() <= width, 0.0, log_ratio)
