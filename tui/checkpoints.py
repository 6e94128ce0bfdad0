"""Copies of a folded state at some places of the stream, so that going back begins at the nearest and not at the start.

Two sides that `put` at the same places in the same order keep the same ones: a feed can name the place from which its
facts go on, and the screens have their own state of just there.
"""

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

EVERY: Final = 5_000
"""Facts from one place to the next."""
KEPT: Final = 64

State = TypeVar("State")


class Checkpoints(Generic[State]):
    """Bounded: when there are too many, every other is dropped."""

    def __init__(self, every: int = EVERY, kept: int = KEPT) -> None:
        self.every, self.kept = every, kept
        self._states: dict[int, State] = {}

    def due(self, position: int) -> bool:
        """Whether this is a place to keep that is not kept yet."""
        return position > 0 and position % self.every == 0 and position not in self._states

    def put(self, position: int, state: State) -> None:
        """Keep a state; nothing may change it from now on."""
        self._states[position] = state
        if len(self._states) > self.kept:
            self.every *= 2
            self._states = {place: kept for place, kept in self._states.items() if place % self.every == 0}

    def at(self, position: int) -> State | None:
        """What was kept at exactly this place."""
        return self._states.get(position)

    def before(self, position: int) -> int:
        """The last place up to here at which something is kept; 0 without one."""
        return max((place for place in self._states if place <= position), default=0)

    def spans(self, begin: int, count: int) -> Iterator[tuple[int, int]]:
        """So many facts after the first `begin`, cut wherever a copy may be due: (from, to), counted from there."""
        at = 0
        while at < count:
            to = min(count, at + self.every - (begin + at) % self.every)
            yield at, to
            at = to
