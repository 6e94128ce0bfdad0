"""A plot as lines of text, in braille dots or plain characters: curves, and marks where something changed.

Pure: the same numbers give the same text. Two dots a column and four a row, so a cell is a grid of eight.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from rich.text import Text

from .series import Point
from .words import number

LABEL: Final = 8
"""Columns of the numbers at the left."""
BITS: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
MARK_STYLES: Final = {"hand": "yellow", "rule": "green", "controller": "dim cyan", "swap": "magenta", "restart": "red"}

SPREAD: Final = "dim blue"
RANKS: Final = ("controller", "restart", "rule", "swap", "hand")
APART: Final = 6
"""Columns from one line of a mark to the next inside a plot, so that the curve is always seen."""
ROOMY: Final = 6
"""From so many lines on a plot has a row of ticks under its axis."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a plot; `x` of the points is already on the axis shown."""

    points: Sequence[Point]
    style: str = "bright_cyan"
    name: str = ""
    last: float | None = None
    """The newest value as it was measured, where the points are smoothed or merged."""
    floor: float = 0.0
    """On a log scale nothing is drawn below it: the smallest positive value measured."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to draw. `marks` are (x, kind)."""

    title: str
    curves: Sequence[Curve]
    marks: Sequence[tuple[float, str]] = ()
    log: bool = False
    plain: bool = False
    focused: bool = False
    x_name: str = "step"
    smoothed: float = 0.0
    """What share of the value before the points keep; told in the title."""


@dataclass(slots=True)
class _Frame:
    """The ranges, and where a value falls among the dots."""

    wide: int
    high: int
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool
    cells: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """(row, column) -> dots of the lines, and the curve that set them last."""
    bands: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """The same of the spread around the first curve; shown where there is no line."""

    def column(self, x: float) -> int:
        """Dot column of an x."""
        low, high = self.x
        return min(self.wide - 1, max(0, int((x - low) / ((high - low) or 1.0) * (self.wide - 1) + 0.5)))

    def row(self, y: float) -> int:
        """Dot row of a y, 0 at the top."""
        low, high = self.y
        value = _scaled(y, self.log)
        return min(self.high - 1, max(0, int((high - value) / ((high - low) or 1.0) * (self.high - 1) + 0.5)))

    def dot(self, column: int, row: int, curve: int, band: bool = False) -> None:
        """Set one dot."""
        cell = (self.bands if band else self.cells).setdefault((row // 4, column // 2), [0, curve])
        cell[0] |= BITS[column % 2][row % 4]
        cell[1] = curve


def chart(plan: Plan, width: int, height: int) -> list[Text]:
    """The lines of a plot: a title, the curve, the x axis, ticks. Exactly `height` lines of at most `width` columns."""
    inner, rows = max(4, width - LABEL - 1), max(1, height - 2)
    drawn = [curve for curve in plan.curves if _usable(curve, plan.log)]
    lines = [_title(plan, width)]
    if not drawn:
        empty = "no positive values" if plan.log and any(curve.points for curve in plan.curves) else "nothing yet"
        lines += [Text(f"{'':{LABEL}} {empty if row == rows // 2 else ''}", "dim") for row in range(rows)]
        return [*lines, Text()][:height]
    frame = _frame(drawn, inner * 2, rows * 4, plan.log)
    marks, ticks = _placed(plan, frame)
    if ticks and height >= ROOMY:
        rows -= 1
        frame.high = rows * 4
    for at, curve in reversed(list(enumerate(drawn))):
        _draw(frame, _usable(curve, plan.log), at)
    labels = _labels(plan, frame, rows)
    lines += [_line(plan, frame, drawn, marks, (labels.get(row, ""), row), inner) for row in range(rows)]
    lines.append(_axis(plan, frame, inner))
    if ticks:
        lines.append(_ticks(plan, ticks, inner))
    return lines[:height]


def fitting(values: Sequence[float]) -> list[str]:
    """Numbers beside an axis: as few digits as tell them apart, and never more columns than there are."""
    for digits in (3, 4, 5, 6):
        texts = [_fit(value, digits) for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts


def _fit(value: float, digits: int) -> str:
    tried = (number(value, fewer) for fewer in range(digits, 0, -1))
    return next((text for text in tried if len(text) <= LABEL), "")


def _placed(plan: Plan, frame: _Frame) -> tuple[dict[int, str], dict[int, str]]:
    """Column -> kind of the marks drawn as lines, the weightiest first, and of those that are ticks under the axis."""
    columns: dict[int, str] = {}
    for x, kind in sorted(plan.marks, key=lambda mark: _rank(mark[1])):
        if frame.x[0] <= x <= frame.x[1]:
            columns[frame.column(x) // 2] = kind
    lines: dict[int, str] = {}
    for column, kind in sorted(columns.items(), key=lambda pair: (-_rank(pair[1]), -pair[0])):
        if kind != "controller" and all(abs(column - other) >= APART for other in lines):
            lines[column] = kind
    return lines, {column: kind for column, kind in columns.items() if column not in lines}


def _rank(kind: str) -> int:
    return RANKS.index(kind) if kind in RANKS else 0


def _ticks(plan: Plan, ticks: dict[int, str], inner: int) -> Text:
    text = Text(f"{'':{LABEL}} ", no_wrap=True, overflow="crop")
    for column in range(inner):
        sign = "'" if plan.plain else "╵"
        text.append(sign if column in ticks else " ", MARK_STYLES.get(ticks.get(column, ""), "yellow"))
    return text


def _scaled(value: float, log: bool) -> float:
    return math.log10(value) if log else value


def _usable(curve: Curve, log: bool) -> list[Point]:
    kept = [p for p in curve.points if math.isfinite(p.low) and math.isfinite(p.high)]
    if not log:
        return kept
    positive = [p if p.low > 0 else p._replace(low=min(p.mean, p.high)) for p in kept if p.mean > 0]
    least = curve.floor
    return [p._replace(low=max(p.low, least), high=max(p.high, least), mean=max(p.mean, least)) for p in positive]


def _frame(curves: Sequence[Curve], wide: int, high: int, log: bool) -> _Frame:
    points = [point for curve in curves for point in _usable(curve, log)]
    low = min(_scaled(point.low, log) for point in points)
    top = max(_scaled(point.high, log) for point in points)
    if top - low < 1e-12:
        pad = abs(top) * 0.1 or 0.5
        low, top = low - pad, top + pad
    return _Frame(wide, high, (min(p.x for p in points), max(p.x for p in points)), (low, top), log)


def _draw(frame: _Frame, points: Sequence[Point], curve: int) -> None:
    before: tuple[int, int] | None = None
    for point in points:
        column, middle = frame.column(point.x), frame.row(point.mean)
        frame.dot(column, middle, curve)
        for row in range(frame.row(point.high), frame.row(point.low) + 1) if curve == 0 else ():
            frame.dot(column, row, curve, band=True)
        if before is not None:
            _join(frame, before, (column, middle), curve)
        before = column, middle


def _join(frame: _Frame, one: tuple[int, int], two: tuple[int, int], curve: int) -> None:
    steps = max(abs(two[0] - one[0]), abs(two[1] - one[1]))
    for step in range(1, steps + 1):
        column = one[0] + (two[0] - one[0]) * step // steps
        row = one[1] + (two[1] - one[1]) * step // steps
        frame.dot(column, row, curve)


def _title(plan: Plan, width: int) -> Text:
    text = Text(no_wrap=True, overflow="crop")
    text.append(plan.title, "bold reverse" if plan.focused else "bold")
    for curve in plan.curves:
        if curve.points:
            name = f" {curve.name}" if curve.name else ""
            last = curve.points[-1].mean if curve.last is None else curve.last
            text.append(f" {name} {number(last)}", curve.style)
    if plan.smoothed:
        text.append(f"  smoothed {plan.smoothed:g}", "dim")
    if plan.log:
        text.append("  log", "dim")
    text.truncate(width)
    return text


def _labels(plan: Plan, frame: _Frame, rows: int) -> dict[int, str]:
    """The top, the middle and the bottom: row -> number."""
    places = sorted({0, rows // 2, rows - 1})
    values = [frame.y[1] - (frame.y[1] - frame.y[0]) * row / max(1, rows - 1) for row in places]
    return dict(zip(places, fitting([10**value if plan.log else value for value in values]), strict=True))


def _line(
    plan: Plan, frame: _Frame, curves: Sequence[Curve], marks: dict[int, str], begin: tuple[str, int], inner: int
) -> Text:
    label, row = begin
    text = Text(f"{label:>{LABEL}} ", "dim", no_wrap=True, overflow="crop")
    for column in range(inner):
        bits, curve = frame.cells.get((row, column), (0, 0))
        spread = frame.bands.get((row, column), (0, 0))[0]
        if bits:
            text.append("*" if plan.plain else chr(0x2800 + bits), curves[curve].style)
        elif spread:
            text.append("." if plan.plain else chr(0x2800 + spread), SPREAD)
        elif column in marks:
            text.append("|" if plan.plain else "│", MARK_STYLES.get(marks[column], "yellow"))
        else:
            text.append(" ")
    return text


def _axis(plan: Plan, frame: _Frame, inner: int) -> Text:
    low, high = (_place(x, frame.x[1] - frame.x[0]) for x in frame.x)
    gap = max(1, inner - len(low) - len(high))
    middle = plan.x_name if gap > len(plan.x_name) + 2 else ""
    return Text(f"{'':{LABEL}} {low}{middle:^{gap}}{high}", "dim", no_wrap=True, overflow="crop")


def _place(x: float, wide: float) -> str:
    """An end of the x axis: whole, unless the axis is so short that this would say nothing."""
    return f"{x:.0f}" if wide >= 10 or float(x).is_integer() else f"{x:.1f}"
