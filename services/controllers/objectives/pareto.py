"""Pareto dominance and hypervolume, exactly, for a few objectives and about a hundred points: plain tuples, no arrays.

Every objective is maximised. A point has one finite value an objective; a reference point lies below what counts.
"""

import math
from collections.abc import Sequence

Point = tuple[float, ...]


def weakly_dominates(a: Point, b: Point) -> bool:
    """a is at least as good as b in everything."""
    return all(x >= y for x, y in zip(a, b, strict=True))


def dominates(a: Point, b: Point) -> bool:
    """a is at least as good in everything and better in something."""
    return a != b and weakly_dominates(a, b)


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other dominates, ascending."""
    return [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]


def ranks(points: Sequence[Point]) -> list[int]:
    """0 on the front, 1 on that of the rest, and so on (non-dominated sorting; Deb 2002)."""
    found = [0] * len(points)
    left, rank = list(range(len(points))), 0
    while left:
        best = {left[i] for i in front([points[i] for i in left])}
        for i in best:
            found[i] = rank
        left, rank = [i for i in left if i not in best], rank + 1
    return found


def crowding(points: Sequence[Point]) -> list[float]:
    """How far apart each point's neighbours are, summed over objectives, each in units of its range (Deb 2002).

    The extremes of every objective have inf. A wide gap is a part of the front that little is known about.
    """
    total = [0.0] * len(points)
    for values in zip(*points, strict=True):
        order = sorted(range(len(points)), key=values.__getitem__)
        span = values[order[-1]] - values[order[0]]
        total[order[0]] = total[order[-1]] = math.inf
        for before, i, after in zip(order, order[1:], order[2:], strict=False):
            total[i] += (values[after] - values[before]) / span if span else 0.0
    return total


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Volume that the points dominate above the reference, exactly (the WFG recursion; While 2012)."""
    inside = [p for p in points if all(x > r for x, r in zip(p, reference, strict=True))]
    best = sorted({inside[i] for i in front(inside)}, reverse=True)
    if len(reference) == 1:
        return best[0][0] - reference[0] if best else 0.0
    if len(reference) == 2:
        return _area(best, reference)
    return math.fsum(exclusive(p, best[:i], reference) for i, p in enumerate(best))


def exclusive(point: Point, others: Sequence[Point], reference: Point) -> float:
    """Volume that `point` dominates above the reference and none of `others` does."""
    box = math.prod(max(0.0, x - r) for x, r in zip(point, reference, strict=True))
    if not box or not others:
        return box
    limited = [tuple(map(min, point, other)) for other in others]
    return max(0.0, box - hypervolume(limited, reference))


def contributions(points: Sequence[Point], reference: Point) -> list[float]:
    """What the hypervolume would lose without each point."""
    return [exclusive(p, [*points[:i], *points[i + 1 :]], reference) for i, p in enumerate(points)]


def gradient(point: Point, others: Sequence[Point], reference: Point) -> Point:
    """d exclusive(point) / d point: the size of the facet by which raising one objective would grow the volume."""
    if not all(x > r for x, r in zip(point, reference, strict=True)):
        return tuple(0.0 for _ in point)
    facets = []
    for j, value in enumerate(point):
        reach = [_without(other, j) for other in others if other[j] >= value]
        rest, base = _without(point, j), _without(reference, j)
        facets.append(exclusive(rest, reach, base) if rest else float(not reach))
    return tuple(facets)


def _area(best: Sequence[Point], reference: Point) -> float:
    """Two objectives: strips, from the largest first value on, of a front sorted that way."""
    area, height = 0.0, reference[1]
    for x, y in best:
        area += (x - reference[0]) * (y - height)
        height = y
    return area


def _without(point: Point, j: int) -> Point:
    return point[:j] + point[j + 1 :]
