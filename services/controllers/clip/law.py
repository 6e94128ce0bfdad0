"""The adaptive clip range: a pure state machine over floats (feature A3).

The KL between the policy and what its clip is around tells whether updates go far: above rate * target the range
shrinks by `rate`, below target / rate it grows by as much, within [init / 2, 2 init].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

WIDEST = 2.0
"""The range stays within this factor of where it began, either way."""


@dataclass(slots=True)
class AdaptiveClipper:
    """Moves a PPO clip range so that the measured KL (nats a token) stays near `kl_target`.

    Raises ValueError at construction when a parameter makes no sense. A KL that is not finite moves nothing and is
    counted in `nonfinite`.
    """

    init_value: float = 0.2
    kl_target: float = 0.01
    rate: float = 1.5
    value: float = field(init=False)
    step: int = field(init=False, default=0)
    nonfinite: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if not all(math.isfinite(x) and x > 0 for x in (self.init_value, self.kl_target)):
            raise ValueError("init_value and kl_target must be finite and greater than 0")
        if not (math.isfinite(self.rate) and self.rate > 1):
            raise ValueError(f"rate must be greater than 1 (got {self.rate})")
        self.value = self.init_value

    def update(self, kl: float, step: int = 0) -> float:
        """Take the last measured KL and return the range for the next."""
        if not math.isfinite(kl):
            self.nonfinite += 1
            return self.value
        self.step = step
        if kl > self.rate * self.kl_target:
            self.value /= self.rate
        elif kl < self.kl_target / self.rate:
            self.value *= self.rate
        self.value = max(self.init_value / WIDEST, min(self.init_value * WIDEST, self.value))
        return self.value

    def state_dict(self) -> dict[str, object]:
        """The state as plain values."""
        return {"value": self.value, "step": self.step, "nonfinite": self.nonfinite}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from `state_dict()`. Raises ValueError, changing nothing."""
        try:
            value = float(cast(float, state["value"]))
            step, nonfinite = (int(cast(float, state[key])) for key in ("step", "nonfinite"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"state of the clip controller is incomplete or mistyped: {error!r}") from error
        if not math.isfinite(value) or value <= 0:
            raise ValueError(f"state of the clip controller holds the range {value}")
        self.value = max(self.init_value / WIDEST, min(self.init_value * WIDEST, value))
        self.step, self.nonfinite = step, nonfinite
