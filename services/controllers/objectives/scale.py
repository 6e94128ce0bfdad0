"""What an objective's values were like so far, in one pass."""

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Running:
    """Count, mean, standard deviation (unbiased), extremes (Welford 1962)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

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
