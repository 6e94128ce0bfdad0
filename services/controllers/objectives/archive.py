"""The best that was seen: points that do not dominate one another, at most so many."""

from collections.abc import Sequence

from .pareto import Point, crowding, weakly_dominates


class Archive:
    """Non-dominated points with a tag each (the step they were measured at), in order of arrival.

    Beyond `size` the most crowded point goes, one at a time; the best of each objective stays. Below `size` what it
    holds does not depend on the order of arrival. Raises ValueError when `size` is less than 2.
    """

    def __init__(self, size: int = 100) -> None:
        if size < 2:
            raise ValueError(f"archive_size must be at least 2 (got {size})")
        self.size = size
        self.entries: list[tuple[Point, int]] = []

    @property
    def points(self) -> list[Point]:
        """The points alone."""
        return [point for point, _ in self.entries]

    def add(self, point: Point, tag: int) -> bool:
        """Take a point unless one that is held is as good in everything; those it is as good as leave."""
        if any(weakly_dominates(other, point) for other, _ in self.entries):
            return False
        self.entries = [entry for entry in self.entries if not weakly_dominates(point, entry[0])]
        self.entries.append((point, tag))
        if len(self.entries) > self.size:
            gaps = crowding(self.points)
            del self.entries[min(range(len(gaps)), key=gaps.__getitem__)]
        return any(entry[0] is point for entry in self.entries)

    def load(self, entries: Sequence[tuple[Point, int]]) -> None:
        """Begin anew with these."""
        self.entries = []
        for point, tag in entries:
            self.add(point, tag)
