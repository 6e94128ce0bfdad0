"""What an objective's values were like so far, in one pass."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

NOISE = 1e-9
"""A spread below this share of the values is what rounding leaves of none."""


@dataclass(slots=True)
class Running:
    """Count, mean, standard deviation (unbiased), extremes (Welford 1962)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    @classmethod
    def of(cls, saved: Mapping[str, float]) -> "Running":
        """From `dataclasses.asdict`. Raises ValueError, KeyError or TypeError for anything else."""
        numbers = [float(saved[name]) for name in ("mean", "squares", "low", "high")]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("a number in it is not finite")
        return cls(int(saved["n"]), *numbers)

    @property
    def varies(self) -> bool:
        """More than rounding explains."""
        return self.n > 1 and self.high - self.low > NOISE * max(abs(self.low), abs(self.high))

    @property
    def deviation(self) -> float:
        """0 before the second value."""
        return math.sqrt(self.squares / (self.n - 1)) if self.n > 1 else 0.0

    def add(self, value: float) -> None:
        """Take one more value."""
        self.n += 1
        before = value - self.mean
        self.mean += before / self.n
        self.squares += before * (value - self.mean)
        self.low, self.high = min(self.low, value), max(self.high, value)
