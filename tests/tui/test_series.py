"""A metric in bounded memory: spikes survive, the end is the end, a resumed stretch replaces what it repeats."""

import random

import pytest

from midflight.tui.series import Point, Series, smooth, thin
from midflight.tui.timeline import Timeline


def test_few_values_are_kept_as_they_are() -> None:
    """Nothing is merged before the bound."""
    series = Series(8)
    for step in range(8):
        series.add(step, step * 10, step / 2)
    assert series.points(100) == [Point(step, step * 10, step / 2, step / 2, step / 2) for step in range(8)]


@pytest.mark.parametrize("seed", range(5))
def test_extremes_and_mean_survive_any_number_of_halvings(seed: int) -> None:
    """Against all values kept in a list."""
    rng = random.Random(seed)
    values = [rng.gauss(0, 1) for _ in range(rng.randint(1000, 5000))]
    values[rng.randrange(len(values))] = 50.0
    series = Series(64)
    for step, value in enumerate(values):
        series.add(step, step, value)
    assert len(series) <= 64
    assert series.last == values[-1]
    assert series.total == len(values)
    points = series.points(64)
    assert min(p.low for p in points) == min(values)
    assert max(p.high for p in points) == 50.0
    for at, point in enumerate(points):
        end = int(points[at + 1].x) if at + 1 < len(points) else len(values)
        part = values[int(point.x) : end]
        assert (point.low, point.high) == (min(part), max(part))
        assert point.mean == pytest.approx(sum(part) / len(part), abs=1e-9)


def test_a_step_back_replaces_the_rest() -> None:
    """A run resumed from step 3 trains 3 and 4 again."""
    series = Series(16)
    for step, value in [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (3, 30.0), (4, 40.0)]:
        series.add(step, 0, value)
    assert [(p.x, p.mean) for p in series.points(16)] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


def test_thin_keeps_extremes() -> None:
    """Nine points in at most four."""
    points = [Point(x, x, x, x, x) for x in range(9)]
    thinned = thin(points, 4)
    assert [(p.low, p.high, p.mean) for p in thinned] == [(0, 2, 1), (3, 5, 4), (6, 8, 7)]


def test_smoothing_is_a_weighted_mean_of_the_past() -> None:
    """The first value is itself; a constant stays; share 0 changes nothing."""
    points = [Point(x, x, v, v, v) for x, v in enumerate([1.0, 3.0])]
    assert [p.mean for p in smooth(points, 0.5)] == [1.0, pytest.approx((0.25 * 1 + 0.5 * 3) / 0.75)]
    assert smooth(points, 0.0) == points
    assert {round(p.mean, 9) for p in smooth([Point(x, x, 2, 2, 2) for x in range(50)], 0.9)} == {2.0}


def test_timeline_translates_a_step() -> None:
    """Into seconds, samples and a policy version; between two steps the earlier one counts."""
    timeline = Timeline()
    for step in (1, 2, 4):
        timeline.add(step, 1_000_000_000 * step, 128, step + 10)
    assert timeline.at(3, 3_500_000_000, "wall") == 2.5
    assert timeline.at(3, 0, "samples") == 256
    assert timeline.at(4, 0, "version") == 14
    timeline.add(2, 9_000_000_000, 64, 50)
    assert (timeline.at(2, 0, "samples"), timeline.at(9, 0, "version")) == (192, 50)


def test_timeline_stays_within_its_bound() -> None:
    """And still knows both ends."""
    timeline = Timeline(capacity=32)
    for step in range(1, 1000):
        timeline.add(step, step, 1, step)
    assert len(timeline.steps) <= 33
    assert timeline.at(1, 1, "samples") == 1
    assert timeline.at(999, 0, "samples") >= 990
