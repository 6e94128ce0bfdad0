"""How much of the time samples are generated while a batch is trained: what asynchrony is for."""

from dataclasses import dataclass


@dataclass(slots=True)
class Overlap:
    """Seconds since the first batch was leased, by what was going on. A state holds until the next `add`."""

    total_s: float = 0.0
    generating_s: float = 0.0
    training_s: float = 0.0
    both_s: float = 0.0
    _since: float | None = None
    _state: tuple[bool, bool] = (False, False)

    def add(self, now: float, *, generating: bool, training: bool) -> None:
        """What is going on from `now` on (monotonic seconds)."""
        if self._since is not None:
            passed = now - self._since
            self.total_s += passed
            self.generating_s += passed * self._state[0]
            self.training_s += passed * self._state[1]
            self.both_s += passed * (self._state == (True, True))
        if self._since is not None or training:
            self._since, self._state = now, (generating, training)

    def shares(self) -> dict[str, str | int | float | bool | None]:
        """Shares of the total in which samples were generated, a batch was trained, and both."""
        total = self.total_s or 1.0
        return {
            "seconds": self.total_s,
            "generating": self.generating_s / total,
            "training": self.training_s / total,
            "both": self.both_s / total,
        }
