"""Which moment, how many samples and which policy version belong to a training step: the other x axes of a plot."""

from array import array
from bisect import bisect_right
from typing import Final, Literal, Self

CAPACITY: Final = 4096
Axis = Literal["step", "wall", "samples", "version"]
AXES: Final[tuple[Axis, ...]] = ("step", "wall", "samples", "version")


class Timeline:
    """One row a step, thinned to every other when there are too many."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.steps, self.ns, self.samples, self.versions = array("q"), array("q"), array("q"), array("q")
        self._total = 0

    def copy(self) -> Self:
        """As it stands: what is added to one is not in the other."""
        twin = type(self)(self.capacity)
        twin.steps, twin.ns, twin.samples, twin.versions = (column[:] for column in self._columns())
        twin._total = self._total
        return twin

    def add(self, step: int, ns: int, samples: int, version: int) -> None:
        """A step was trained on so many samples. One before the last begins that stretch anew."""
        while self.steps and self.steps[-1] >= step:
            for column in self._columns():
                column.pop()
            self._total = self.samples[-1] if self.samples else 0
        self._total += samples
        for column, value in zip(self._columns(), (step, ns, self._total, version), strict=True):
            column.append(value)
        if len(self.steps) > self.capacity:
            self.steps, self.ns, self.samples, self.versions = (column[::2] for column in self._columns())

    def at(self, step: float, ns: int, axis: Axis) -> float:
        """Where a point lies on an axis. Wall: seconds since the first step."""
        if axis == "wall":
            return (ns - self.ns[0]) / 1e9 if self.ns else 0.0
        if axis == "step" or not self.steps:
            return step
        row = max(0, bisect_right(self.steps, step) - 1)
        return float((self.samples if axis == "samples" else self.versions)[row])

    def _columns(self) -> tuple["array[int]", ...]:
        return self.steps, self.ns, self.samples, self.versions
