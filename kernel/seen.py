"""Which numbered messages of each sender were taken, so that a repeat has no effect, in whatever order they come."""

from collections.abc import Mapping
from typing import Any


class Seen:
    """Numbers from 1 a sender: everything up to a low mark, and single ones above it."""

    def __init__(self) -> None:
        self._low: dict[str, int] = {}
        self._above: dict[str, set[int]] = {}

    def take(self, sender: str, number: int) -> bool:
        """Whether it is new; it is taken from now on."""
        low, above = self._low.get(sender, 0), self._above.setdefault(sender, set())
        if number <= low or number in above:
            return False
        above.add(number)
        while low + 1 in above:
            low += 1
            above.remove(low)
        self._low[sender] = low
        return True

    def forget(self, sender: str) -> None:
        """Nothing of this sender will come any more."""
        self._low.pop(sender, None)
        self._above.pop(sender, None)

    def snapshot(self) -> dict[str, Any]:
        """As plain values."""
        return {sender: [low, sorted(self._above[sender])] for sender, low in self._low.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo `snapshot`."""
        self._low = {sender: low for sender, (low, _) in state.items()}
        self._above = {sender: set(above) for sender, (_, above) in state.items()}
