"""Plots as text: exact size, the curve where it belongs, marks, logs, and plain characters."""

import math

import pytest

from midflight.tui.chart import LABEL, Curve, Plan, chart
from midflight.tui.series import Point, least_positive, smooth


def curve(*values: float) -> Curve:
    """A curve over 0, 1, 2, ..."""
    return Curve(tuple(Point(float(x), x, v, v, v) for x, v in enumerate(values)))


def body(plan: Plan, width: int = 30, height: int = 8) -> list[str]:
    """The plotted area."""
    return [line.plain[LABEL + 1 :] for line in chart(plan, width, height)[1:-1]]


@pytest.mark.parametrize(("width", "height"), [(20, 5), (30, 8), (80, 20), (9, 3)])
def test_exact_size(width: int, height: int) -> None:
    """As many lines as asked for, none wider."""
    lines = chart(Plan("loss", (curve(1, 2, 3),)), width, height)
    assert len(lines) == height
    assert all(line.cell_len <= max(width, LABEL + 5) for line in lines)


def test_a_rising_line_rises() -> None:
    """From the lower left to the upper right, in plain characters."""
    rows = body(Plan("m", (curve(*range(20)),), plain=True))
    columns = [row.find("*") for row in rows]
    assert columns == sorted(columns, reverse=True)
    assert rows[-1].startswith("*")
    assert rows[0].rstrip().endswith("*")
    assert rows[0].rstrip() == rows[0]


def test_labels_are_the_extremes() -> None:
    """And the middle."""
    lines = chart(Plan("m", (curve(0.0, 8.0),)), 40, 11)
    labels = [line.plain[:LABEL].strip() for line in lines[1:-1]]
    assert [label for label in labels if label] == ["8", "4", "0"]


def test_log_scale_needs_positive_values() -> None:
    """Others are left out; without any it says so."""
    lines = chart(Plan("m", (curve(-1.0, 1.0, 100.0),), log=True), 40, 11)
    labels = [line.plain[:LABEL].strip() for line in lines[1:-1] if line.plain[:LABEL].strip()]
    assert labels == ["100", "10", "1"]
    nothing = chart(Plan("m", (curve(-1.0, -2.0),), log=True), 40, 11)
    assert any("no positive values" in line.plain for line in nothing)


def test_marks_stand_where_they_belong() -> None:
    """Never over the curve; of two in a column the weightier; outside the range none."""
    plan = Plan("m", (curve(0, 0, 0, 0, 0),), marks=((2.0, "controller"), (2.0, "hand"), (99.0, "hand")), plain=True)
    lines = chart(plan, LABEL + 1 + 21, 8)
    rows = [line.plain[LABEL + 1 :] for line in lines[1:-1]]
    assert {row.find("|") for row in rows if "|" in row} == {10}
    assert sum("|" in row for row in rows) == len(rows) - 1
    spans = [span.style for line in lines for span in line.spans if "|" in line.plain[span.start : span.end]]
    assert set(spans) == {"yellow"}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_left_out(value: float) -> None:
    """The rest is drawn as if it were not there."""
    assert body(Plan("m", (curve(1, 2, value),))) == body(Plan("m", (curve(1, 2),)))


def test_a_spike_between_two_points_is_seen() -> None:
    """The spread of a merged point reaches its extremes."""
    points = (Point(0, 0, 0, 0, 0), Point(1, 0, 0, 10, 0.1), Point(2, 0, 0, 0, 0))
    rows = body(Plan("m", (Curve(points),), plain=True))
    assert "." in rows[0]


def test_nothing_yet() -> None:
    """No points."""
    assert any("nothing yet" in line.plain for line in chart(Plan("m", ()), 40, 9))


def marked(*marks: tuple[float, str], high: int = 12) -> list[str]:
    """The lines of a plot 60 columns wide with these marks."""
    plan = Plan("m", (curve(*[0.0] * 600),), marks=marks, plain=True)
    return [line.plain[LABEL + 1 :] for line in chart(plan, LABEL + 1 + 60, high)]


@pytest.mark.parametrize("kind", ["hand", "rule", "swap", "restart"])
def test_however_many_marks_never_hide_the_plot(kind: str) -> None:
    """One line in six columns at most; the others are ticks in one row under the axis."""
    lines = marked(*((float(x), kind) for x in range(600)))
    assert len(lines) == 12
    inside = lines[1].rstrip()
    assert 0 < inside.count("|") <= 10
    assert "|" * 2 not in inside
    assert lines[-1].count("'") + inside.count("|") == 60


def test_what_controllers_decide_is_only_a_tick() -> None:
    """And a mark of a person is drawn all the same."""
    lines = marked(*((float(x), "controller") for x in range(600)), (300.0, "hand"))
    assert {line.find("|") for line in lines[1:-2] if "|" in line} == {30}
    assert all(line.count("|") <= 1 for line in lines)
    assert lines[-1].count("'") == 59


def test_without_ticks_there_is_no_row_for_them() -> None:
    """And none in a plot that is too low."""
    assert "'" not in "".join(marked((10.0, "hand")))
    low = marked((10.0, "controller"), high=4)
    assert (len(low), "'" in "".join(low)) == (4, False)


def test_smoothing_never_goes_below_what_was_measured() -> None:
    """A metric of zeros with one spike, smoothed, on a log scale: the axis ends at the smallest positive value."""
    measured = [Point(float(x), x, v, v, v) for x, v in enumerate([0.01, *[0.0] * 500, 5.0])]
    plan = Plan("m", (Curve(smooth(measured, 0.9), floor=least_positive(measured), last=5.0),), log=True, smoothed=0.9)
    lines = [line.plain for line in chart(plan, 60, 11)]
    labels = [float(line[:LABEL]) for line in lines[1:-1] if line[:LABEL].strip()]
    assert min(labels) == pytest.approx(0.01, abs=0.001)
    assert lines[0].split() == ["m", "5", "smoothed", "0.9", "log"]


@pytest.mark.parametrize(("low", "high"), [(-8.72e-08, 8.72e-08), (-1.5e10, 0), (1000.11, 1000.19), (-3e-300, 1e300)])
def test_labels_are_never_cut_into_other_numbers(low: float, high: float) -> None:
    """They fit, and are as near to the value as that allows."""
    labels = [line.plain[:LABEL].strip() for line in chart(Plan("m", (curve(low, high),)), 60, 11)[1:-1]]
    top, middle, bottom = (float(label) for label in labels if label)
    assert top == pytest.approx(high, rel=0.05)
    assert bottom == pytest.approx(low, rel=0.05)
    assert bottom < middle < top


def test_the_ends_of_the_axis_are_whole() -> None:
    """Seconds without a fraction, unless there are only a few."""
    points = (Point(0.1234, 0, 1, 1, 1), Point(63.987, 0, 2, 2, 2))
    assert chart(Plan("m", (Curve(points),), x_name="wall"), 60, 9)[-1].plain.split() == ["0", "wall", "64"]
    points = (Point(0.0, 0, 1, 1, 1), Point(2.26, 0, 2, 2, 2))
    assert chart(Plan("m", (Curve(points),), x_name="wall"), 60, 9)[-1].plain.split() == ["0", "wall", "2.3"]
