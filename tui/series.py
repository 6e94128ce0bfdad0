"""One metric over a whole run in bounded memory: buckets that keep the least, the greatest and the mean.

When the buckets are used up, two neighbours become one, so that a spike survives any number of halvings.
"""

from array import array
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

CAPACITY: Final = 1024


class Point(NamedTuple):
    """Some neighbouring values. `x` and `ns` are those of the first."""

    x: float
    ns: int
    low: float
    high: float
    mean: float


class Series:
    """Values in the order of `x`; a value before the last one begins that stretch anew, as after a resume."""

    __slots__ = ("_count", "capacity", "highs", "last", "lows", "means", "ns", "stride", "total", "xs")

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.stride = 1
        """Values a full bucket stands for."""
        self.total = 0
        """Values ever added."""
        self.last = 0.0
        self.xs, self.ns = array("d"), array("q")
        self.lows, self.highs, self.means = array("d"), array("d"), array("d")
        self._count = 0

    def __len__(self) -> int:
        return len(self.xs)

    def copy(self) -> Self:
        """As it stands: what is added to one is not in the other."""
        twin = type(self)(self.capacity)
        twin.stride, twin.total, twin.last, twin._count = self.stride, self.total, self.last, self._count
        twin.xs, twin.ns = self.xs[:], self.ns[:]
        twin.lows, twin.highs, twin.means = self.lows[:], self.highs[:], self.means[:]
        return twin

    def add(self, x: float, ns: int, value: float) -> None:
        """Take one value."""
        if self.xs and x < self.xs[-1]:
            self._forget_from(x)
        self.total += 1
        self.last = value
        if self.xs and self._count < self.stride:
            self._count += 1
            if value < self.lows[-1]:
                self.lows[-1] = value
            if value > self.highs[-1]:
                self.highs[-1] = value
            self.means[-1] += (value - self.means[-1]) / self._count
            return
        if len(self.xs) >= self.capacity:
            self._halve()
        self.xs.append(x)
        self.ns.append(ns)
        self.lows.append(value)
        self.highs.append(value)
        self.means.append(value)
        self._count = 1

    def points(self, most: int) -> list[Point]:
        """The whole series in at most `most` points."""
        every = Point._make
        full = [every(row) for row in zip(self.xs, self.ns, self.lows, self.highs, self.means, strict=True)]
        return thin(full, most)

    def tail(self, count: int) -> Sequence[float]:
        """Means of the newest buckets."""
        return self.means[-count:]

    def _halve(self) -> None:
        pairs = range(0, len(self.xs) - 1, 2)
        self.lows = array("d", (min(self.lows[i], self.lows[i + 1]) for i in pairs))
        self.highs = array("d", (max(self.highs[i], self.highs[i + 1]) for i in pairs))
        self.means = array("d", ((self.means[i] + self.means[i + 1]) / 2 for i in pairs))
        odd = len(self.xs) % 2
        self.xs, self.ns = self.xs[: len(self.xs) - odd : 2], self.ns[: len(self.ns) - odd : 2]
        self.stride *= 2

    def _forget_from(self, x: float) -> None:
        while self.xs and self.xs[-1] >= x:
            for column in (self.xs, self.ns, self.lows, self.highs, self.means):
                column.pop()
        self._count = self.stride


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points, each the least and the greatest of those it stands for."""
    size = -(-len(points) // max(1, most)) or 1
    if size == 1:
        return list(points)
    out = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        low, high = min(p.low for p in part), max(p.high for p in part)
        out.append(Point(part[0].x, part[0].ns, low, high, sum(p.mean for p in part) / len(part)))
    return out


def smooth(points: Sequence[Point], share: float) -> list[Point]:
    """Exponential mean: each point keeps `share` of the one before; 0 changes nothing."""
    if share <= 0 or not points:
        return list(points)
    out: list[Point] = []
    mean, weight = 0.0, 0.0
    for point in points:
        mean, weight = share * mean + (1 - share) * point.mean, share * weight + (1 - share)
        value = mean / weight
        out.append(Point(point.x, point.ns, value, value, value))
    return out


def least_positive(points: Sequence[Point]) -> float:
    """The smallest positive value that merged points still tell of; 0 without one."""
    return min((p.low if p.low > 0 else p.high for p in points if p.high > 0), default=0.0)
