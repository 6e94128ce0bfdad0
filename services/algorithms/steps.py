"""What an estimator reads: one transition a step, time along the last dimension."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .ratios import LOG_LIMIT


@dataclass(frozen=True, slots=True)
class Steps:
    """Transitions (s_t, a_t, r_t, s_{t+1}), every field [..., T] of one shape.

    rewards r_t. values V(s_t). next_values V(s_{t+1}) of the true next state, before any reset: where nothing is cut
    that is values_{t+1}; after a termination it is ignored, whatever it is. terminated: the episode truly ended here.
    cut: nothing later belongs to this step's trajectory: termination, time limit, or the end of what was collected.
    log_ratio: x = log pi(a_t) - log mu(a_t) in nats, clamped to +-LOG_LIMIT; zeros on-policy.
    """

    rewards: Tensor
    values: Tensor
    next_values: Tensor
    terminated: Tensor
    cut: Tensor
    log_ratio: Tensor

    @classmethod
    def of(
        cls,
        rewards: Tensor,
        values: Tensor,
        next_values: Tensor,
        terminated: Tensor,
        truncated: Tensor | None = None,
        log_ratio: Tensor | None = None,
    ) -> "Steps":
        """Complete what was left out: the last step is cut, no step truncated, the data on-policy.

        Raises ValueError for shapes that differ, and for integer rewards.
        """
        flags = terminated.bool()
        cut = flags if truncated is None else flags | truncated.bool()
        cut = cut.clone()
        cut[..., -1:] = True
        ratio = torch.zeros_like(rewards) if log_ratio is None else log_ratio.clamp(-LOG_LIMIT, LOG_LIMIT)
        made = cls(rewards, values, next_values, flags, cut, ratio)
        shapes = {name: tuple(getattr(made, name).shape) for name in cls.__slots__}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"every field of a step needs the same shape, got {shapes}")
        if not rewards.is_floating_point():
            raise ValueError(f"rewards must be floating point, got {rewards.dtype}")
        return made

    @property
    def bootstrap(self) -> Tensor:
        """V(s_{t+1}), 0 after a termination."""
        return torch.where(self.terminated, 0.0, self.next_values)

    @property
    def ratio(self) -> Tensor:
        """rho_t = pi(a_t) / mu(a_t)."""
        return self.log_ratio.exp()

    def delta(self, gamma: float) -> Tensor:
        """TD error r_t + gamma V(s_{t+1}) - V(s_t)."""
        return torch.add(self.rewards - self.values, self.bootstrap, alpha=gamma)

    def going_on(self, factor: float) -> Tensor:
        """`factor` where the trajectory goes on, 0 at cuts: the coefficient of a recurrence."""
        return (~self.cut).to(self.rewards.dtype) * factor

    def traces(self, factor: float, weight: Tensor) -> Tensor:
        """The same times a weight of each step, 0 at cuts whatever that is there."""
        return torch.where(self.cut, 0.0, factor * weight)
