"""Dominance, crowding and hypervolume: against definitions read literally, moocore, pymoo, and random points."""

import itertools
import math
import random

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from midflight.services.controllers.objectives.archive import Archive
from midflight.services.controllers.objectives.pareto import (
    Point,
    contributions,
    crowding,
    dominates,
    exclusive,
    front,
    gradient,
    hypervolume,
    ranks,
)

coordinate = st.one_of(st.integers(-2, 3).map(float), st.floats(-1.5, 2.5, allow_nan=False))


def clouds(most: int = 12) -> st.SearchStrategy[list[Point]]:
    """Points of 1 to 4 objectives, often equal in one."""
    return st.integers(1, 4).flatmap(lambda d: st.lists(st.tuples(*[coordinate] * d), min_size=1, max_size=most))


def drawn(d: int, n: int, seed: int) -> list[Point]:
    """Uniform points in the unit cube."""
    rng = random.Random(seed)
    return [tuple(rng.random() for _ in range(d)) for _ in range(n)]


def by_inclusion(points: list[Point], reference: Point) -> float:
    """The union of boxes by inclusion and exclusion: 2^n terms."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, size):
            corner = [min(values) for values in zip(*chosen, strict=True)]
            total -= (-1) ** size * math.prod(max(0.0, x - r) for x, r in zip(corner, reference, strict=True))
    return total


@given(clouds(9))
@settings(max_examples=150, deadline=None)
def test_hypervolume_is_the_union_of_boxes(points: list[Point]) -> None:
    """Whatever the number of objectives, with ties and points below the reference."""
    reference = tuple(-1.0 for _ in points[0])
    assert hypervolume(points, reference) == pytest.approx(by_inclusion(points, reference), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("d", "n"), [(2, 100), (3, 60), (4, 30), (5, 20)])
def test_hypervolume_and_contributions_agree_with_moocore(d: int, n: int) -> None:
    """moocore minimises: its points and reference are ours with the sign turned."""
    points, reference = drawn(d, n, seed=d), (0.0,) * d
    turned = -np.array(points)
    assert hypervolume(points, reference) == pytest.approx(moocore.hypervolume(turned, ref=np.zeros(d)), rel=1e-12)
    theirs = moocore.hv_contributions(turned, ref=np.zeros(d), ignore_dominated=False)
    assert contributions(points, reference) == pytest.approx(theirs.tolist(), rel=1e-9, abs=1e-13)


@given(clouds())
@settings(max_examples=100, deadline=None)
def test_hypervolume_ignores_order_and_never_falls(points: list[Point]) -> None:
    """Permutation invariant, monotone in points, and at least the sum of the contributions."""
    reference = tuple(-2.5 for _ in points[0])
    whole = hypervolume(points, reference)
    assert hypervolume(points[::-1], reference) == pytest.approx(whole, rel=1e-12, abs=1e-12)
    assert hypervolume(points[:-1], reference) <= whole * (1 + 1e-12) + 1e-12
    assert math.fsum(contributions(points, reference)) <= whole * (1 + 1e-9) + 1e-9


def test_hypervolume_by_throwing_darts() -> None:
    """Within 4 standard deviations of a Monte Carlo estimate."""
    points, darts = drawn(3, 8, seed=5), drawn(3, 20000, seed=6)
    hits = sum(any(all(x >= y for x, y in zip(p, dart, strict=True)) for p in points) for dart in darts)
    share = hits / len(darts)
    error = math.sqrt(share * (1 - share) / len(darts))
    assert abs(hypervolume(points, (0.0, 0.0, 0.0)) - share) < 4 * error


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_gradient_of_the_exclusive_volume(d: int) -> None:
    """Against central differences, on and off the front."""
    others, reference = drawn(d, 8, seed=10 + d), (0.0,) * d
    for point in drawn(d, 12, seed=20 + d):
        found = gradient(point, others, reference)
        for j in range(d):
            sides = [tuple(x + h * (i == j) for i, x in enumerate(point)) for h in (1e-6, -1e-6)]
            up, down = (exclusive(side, others, reference) for side in sides)
            assert found[j] == pytest.approx((up - down) / 2e-6, abs=1e-6)


@given(clouds(15))
@settings(max_examples=100, deadline=None)
def test_ranks_agree_with_pymoo(points: list[Point]) -> None:
    """And rank 0 is the front by definition."""
    theirs = [0] * len(points)
    for rank, members in enumerate(NonDominatedSorting().do(-np.array(points))):
        for i in members:
            theirs[i] = rank
    assert ranks(points) == theirs
    assert front(points) == [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]


def test_crowding_by_hand() -> None:
    """Inner points: the gap between their neighbours over the range, in each objective; extremes have inf."""
    points: list[Point] = [(0.0, 4.0), (1.0, 2.0), (4.0, 0.0)]
    assert crowding(points) == [math.inf, (4 - 0) / 4 + (4 - 0) / 4, math.inf]
    assert crowding([(1.0, 1.0)]) == [math.inf]
    assert crowding([(1.0, 1.0)] * 3) == [math.inf, 0.0, math.inf]  # no range, no gap


@given(clouds(25))
@settings(max_examples=100, deadline=None)
def test_archive_holds_the_front_whatever_the_order(points: list[Point]) -> None:
    """Below its size: exactly the non-dominated points, each once."""
    one, other = Archive(30), Archive(30)
    for tag, point in enumerate(points):
        one.add(point, tag)
        other.add(points[-1 - tag], tag)
    assert sorted(one.points) == sorted({points[i] for i in front(points)}) == sorted(other.points)


def test_archive_forgets_the_most_crowded_first() -> None:
    """Beyond its size the extremes stay, and points close together go."""
    archive = Archive(4)
    for tag, x in enumerate([0.0, 1.0, 0.5, 0.52, 0.25, 0.75]):
        archive.add((x, 1.0 - x), tag)
    assert len(archive.points) == 4
    assert {(0.0, 1.0), (1.0, 0.0)} <= set(archive.points)
    assert not {(0.5, 0.5), (0.52, 0.48)} <= set(archive.points)
    with pytest.raises(ValueError, match="at least 2"):
        Archive(1)
