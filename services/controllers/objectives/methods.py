"""Four ways to make one loss of several objectives: each a function of where they stand -> (loss, pull).

`pull` is minus the gradient of the loss in the point, all at least 0: how much each objective is to count now. All in
units of the objectives' scales, more being better.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from .pareto import Point, crowding, dominates, exclusive, gradient, ranks

ParetoMethod = Literal["weighted_sum", "tchebycheff", "pareto_dominance", "hypervolume"]


@dataclass(frozen=True, slots=True)
class View:
    """What a method looks at.

    point: where the objectives stand. weights: how much each was meant to count, >= 0. ideal: a little beyond the best.
    front: the archive. reference: what volumes are measured from. rho, temperature, diversity_weight: see the methods.
    """

    point: Point
    weights: Point
    ideal: Point
    front: Sequence[Point]
    reference: Point
    rho: float
    temperature: float
    diversity_weight: float


def weighted_sum(v: View) -> tuple[float, Point]:
    """-sum w f."""
    return -_dot(v.weights, v.point), v.weights


def tchebycheff(v: View) -> tuple[float, Point]:
    """max g + rho sum g of the gaps g = w (z - f); with a temperature t > 0 the smooth maximum t log sum exp(g / t)."""
    gaps = [w * (z - f) for w, z, f in zip(v.weights, v.ideal, v.point, strict=True)]
    top = max(gaps)
    if v.temperature:
        raised = [math.exp((gap - top) / v.temperature) for gap in gaps]
        shares = [x / sum(raised) for x in raised]
        top += v.temperature * math.log(sum(raised))
    else:
        shares = [float(i == gaps.index(top)) for i in range(len(gaps))]
    pull = tuple(w * (share + v.rho) for w, share in zip(v.weights, shares, strict=True))
    return top + v.rho * sum(gaps), pull


def pareto_dominance(v: View) -> tuple[float, Point]:
    """The weighted sum times exp(-rank + diversity_weight c), c = gap / (gap + 1) for the crowding distance `gap`.

    Not differentiable: its pull is the weighted sum's, stronger on the front and where little of it is known.
    """
    points = [*(p for p in v.front if p != v.point), v.point]
    gap = crowding(points)[-1]
    crowded = 1.0 if math.isinf(gap) else gap / (gap + 1.0)
    fitness = math.exp(-ranks(points)[-1] + v.diversity_weight * crowded)
    return -fitness * _dot(v.weights, v.point), tuple(fitness * w for w in v.weights)


def hypervolume(v: View) -> tuple[float, Point]:
    """Minus the volume that the point adds to the front's; where it adds none, its distance to what dominates it."""
    slope = gradient(v.point, v.front, v.reference)
    if any(slope):
        return -exclusive(v.point, v.front, v.reference), slope
    above = [p for p in v.front if dominates(p, v.point)]
    nearest = min(above or [v.reference], key=lambda p: math.dist(p, v.point))
    distance = math.dist(nearest, v.point)
    way = tuple(max(0.0, x - y) / distance if distance else 0.0 for x, y in zip(nearest, v.point, strict=True))
    return distance if above else 0.0, way if any(way) else tuple(1.0 for _ in way)


METHODS: Final[dict[ParetoMethod, Callable[[View], tuple[float, Point]]]] = {
    "weighted_sum": weighted_sum,
    "tchebycheff": tchebycheff,
    "pareto_dominance": pareto_dominance,
    "hypervolume": hypervolume,
}


def _dot(a: Point, b: Point) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
