"""2 Metrics: pages of plots; log scale, smoothing, four x axes, what a shadow would do, marks where things changed."""

import csv
import io
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widgets import Static

from midflight.tui.chart import MARK_STYLES, Curve, Plan
from midflight.tui.model import Mark
from midflight.tui.series import Point, least_positive, smooth, thin
from midflight.tui.timeline import AXES
from midflight.tui.widgets.plot import Plot
from midflight.tui.words import clock

from .base import RunScreen

FIRST = (
    "reward_mean", "eval/reward", "loss", "kl", "knob/kl.coef", "entropy", "lag_mean", "grad_norm", "policy_loss",
    "throughput/tokens_per_s", "train_s", "wait_s", "lr", "ess", "reward_std", "clip_high",
)  # fmt: skip
"""What most people look at first; the others follow by name."""
GRIDS = ((1, 1), (2, 2), (3, 2), (3, 3), (4, 4))
SMOOTH = (0.0, 0.6, 0.9, 0.97)
EVERY = 5
"""Plots are drawn once in so many flushes: once a second."""


class Metrics(RunScreen):
    """A grid of plots."""

    NAME = "metrics"
    AUTO_FOCUS = "#grid"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("g", "log", "log Y", id="metrics.log"),
        Binding("s", "smooth", "smooth", id="metrics.smooth"),
        Binding("x", "axis", "x axis", id="metrics.axis"),
        Binding("m", "maximise", "maximise", id="metrics.maximise"),
        Binding("plus,equals_sign", "grid(1)", "more", show=False, key_display="+", id="metrics.more"),
        Binding("minus", "grid(-1)", "fewer", show=False, key_display="-", id="metrics.fewer"),
        Binding("c", "overlay", "shadow", id="metrics.overlay"),
        Binding("v", "rules", "marks", id="metrics.marks"),
        Binding("left", "move(-1)", "left", show=False, id="metrics.left"),
        Binding("right", "move(1)", "right", show=False, id="metrics.right"),
        Binding("up", "move_row(-1)", "up", show=False, id="metrics.up"),
        Binding("down", "move_row(1)", "down", show=False, id="metrics.down"),
        Binding("enter", "decision", "decision", show=False, id="metrics.decision"),
        Binding(
            "left_square_bracket", "mark(-1)", "previous mark", show=False, key_display="[", id="metrics.previous_mark"
        ),
        Binding("right_square_bracket", "mark(1)", "next mark", show=False, key_display="]", id="metrics.next_mark"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.grid, self.page, self.at = 2, 0, 0
        self.log_y = False
        self.smoothing = 0
        self.axis = 0
        self.overlay = False
        self.all_marks = False
        self.maximised = False
        self.marked: int | None = None
        """Number of the event of the mark that was stepped to."""
        self._turn = 0

    def body(self) -> ComposeResult:
        """As many plots as the largest grid; those too many are hidden."""
        yield Static(id="metrics-line", markup=False)
        with Container(id="grid"):
            for at in range(GRIDS[-1][0] * GRIDS[-1][1]):
                yield Plot(id=f"plot-{at}")

    def refresh_all(self) -> None:
        """Plots cost: once a second, unless a key was pressed."""
        self._turn += 1
        if self._shown == -1 or self._turn % EVERY == 0:
            super().refresh_all()
        else:
            self.refresh_header()

    def names(self) -> list[str]:
        """Every metric that passes the filter (a part of its name, or a pattern with `*`), the well known first."""
        known = list(self.model.series)
        ordered = [name for name in FIRST if name in known] + sorted(name for name in known if name not in FIRST)
        wanted = self.wanted.lower()
        if any(sign in wanted for sign in "*?["):
            return [name for name in ordered if fnmatch(name.lower(), wanted)]
        return [name for name in ordered if wanted in name.lower()]

    def show(self) -> None:
        """The page: laid out and drawn in one go, for the size the plots are about to have."""
        names, size = self.names(), self._plots()
        self.page = max(0, min(self.page, (len(names) - 1) // size if names else 0))
        self.at = max(0, min(self.at, len(names) - 1))
        shown = names[self.at : self.at + 1] if self.maximised else names[self.page * size : (self.page + 1) * size]
        rows, columns = self._shape(len(shown))
        grid, marks = self.query_one("#grid"), self._marks()
        grid.styles.grid_size_rows, grid.styles.grid_size_columns = rows, columns
        width = grid.content_size.width // columns - 1
        for index, plot in enumerate(self.query(Plot)):
            plot.display = index < len(shown)
            plot.draw(self._plan(shown[index], marks, width) if plot.display else None)
        self._line(len(names), size)

    def find_next(self, forward: bool) -> None:
        """`n` and `N` turn the page."""
        size = self._plots()
        pages = max(1, -(-len(self.names()) // size))
        self.page = (self.page + (1 if forward else -1)) % pages
        self.at = self.page * size
        self.stale()

    def apply_filter(self, text: str) -> None:
        """From the first page on."""
        self.page = self.at = 0
        super().apply_filter(text)

    def step_back(self) -> bool:
        """The mark, the maximised plot, the filter."""
        if self.marked is not None:
            self.marked = None
            self.stale()
            return True
        if self.maximised:
            self.action_maximise()
            return True
        return super().step_back()

    def action_log(self) -> None:
        """`g`: all plots on a log scale, or none."""
        self.log_y = not self.log_y
        self.stale()

    def action_smooth(self) -> None:
        """`s`: none, 0.6, 0.9, 0.97."""
        self.smoothing = (self.smoothing + 1) % len(SMOOTH)
        self.stale()

    def action_axis(self) -> None:
        """`x`: step, wall clock, samples, policy version."""
        self.axis = (self.axis + 1) % len(AXES)
        self.stale()

    def action_maximise(self) -> None:
        """`m`: the plot under the cursor alone."""
        self.maximised = not self.maximised
        self.page = self.at // self._plots()
        self.stale()

    def action_grid(self, by: int) -> None:
        """`+` and `-`: more plots or fewer; what was alone is among the others again."""
        self.grid = max(0, min(self.grid + by, len(GRIDS) - 1))
        self.maximised = False
        self.page = self.at // self._plots()
        self.stale()

    def action_overlay(self) -> None:
        """`c`: beside a knob what each controller, shadows too, said it should be."""
        self.overlay = not self.overlay
        self.stale()

    def action_rules(self) -> None:
        """`v`: also marks of what controllers did by themselves."""
        self.all_marks = not self.all_marks
        self.stale()

    def action_move(self, by: int) -> None:
        """The plot beside."""
        self.at = max(0, min(self.at + by, len(self.names()) - 1))
        self.page = self.at // self._plots()
        self.stale()

    def action_move_row(self, by: int) -> None:
        """The plot above or below."""
        self.action_move(by * (1 if self.maximised else GRIDS[self.grid][1]))

    def action_mark(self, by: int) -> None:
        """`[` and `]`: the mark before or after."""
        marks = self._marks()
        if not marks:
            self.midflight.say("nothing was changed yet")
            return
        numbers = [mark.seq for mark in marks]
        at = numbers.index(self.marked) + by if self.marked in numbers else (-1 if by < 0 else 0)
        self.marked = numbers[at % len(numbers)]
        self.stale()

    def action_decision(self) -> None:
        """Enter: to the decision behind the mark, or the plot alone."""
        mark = next((mark for mark in self._marks() if mark.seq == self.marked), None)
        if mark is None:
            self.action_maximise()
            return
        self.midflight.go_to_told(mark.seq)

    def copied(self) -> str:
        """The numbers of the plot under the cursor, as CSV."""
        return self._csv([name] if (name := self._current()) else [])

    def exported(self) -> dict[str, str]:
        """The metrics of the page as CSV."""
        size = self._plots()
        return {"metrics.csv": self._csv(self.names()[self.page * size : (self.page + 1) * size])}

    def _csv(self, names: Sequence[str]) -> str:
        if not names:
            return ""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("metric", "step", "ns", "low", "high", "mean"))
        for name in names:
            points = self.model.series[name].points(10**9)
            rows.writerows((name, f"{p.x:g}", p.ns, p.low, p.high, p.mean) for p in points)
        return text.getvalue()

    def _shape(self, shown: int) -> tuple[int, int]:
        """Rows and columns of so many plots: no row is empty."""
        columns = max(1, min(GRIDS[self.grid][1], shown))
        return max(1, -(-shown // columns)), columns

    def _plots(self) -> int:
        rows, columns = GRIDS[self.grid]
        return rows * columns

    def _current(self) -> str:
        names = self.names()
        return names[self.at] if self.at < len(names) else ""

    def _marks(self) -> list[Mark]:
        return [mark for mark in self.model.marks if self.all_marks or mark.kind != "controller"]

    def _plan(self, name: str, marks: list[Mark], width: int) -> Plan:
        axis, timeline = AXES[self.axis], self.model.timeline
        most = max(16, 2 * (width - 9))
        curves = [self._curve(name, most)]
        if self.overlay and name.startswith("knob/"):
            knob = name.removeprefix("knob/")
            styles = iter(("yellow", "magenta", "green", "red"))
            for ruler in list(self.model.decisions)[:4]:
                if f"{ruler}/{knob}" in self.model.series:
                    curves.append(self._curve(f"{ruler}/{knob}", most, next(styles), ruler))
        places = tuple((timeline.at(float(mark.step), mark.ns, axis), mark.kind) for mark in marks)
        return Plan(
            name, tuple(curves), places, self.log_y, self.glyphs.full == "#", name == self._current(), axis,
            SMOOTH[self.smoothing],
        )  # fmt: skip

    def _curve(self, name: str, most: int, style: str = "bright_cyan", told: str = "") -> Curve:
        """Smoothed first, then made fewer; on a log scale nothing lies below what was measured."""
        axis, timeline, series = AXES[self.axis], self.model.timeline, self.model.series[name]
        measured = series.points(10**9)
        points: Sequence[Point] = thin(smooth(measured, SMOOTH[self.smoothing]), most)
        if axis != "step":
            points = [point._replace(x=timeline.at(point.x, point.ns, axis)) for point in points]
        return Curve(tuple(points), style, told, series.last, least_positive(measured))

    def _line(self, total: int, size: int) -> None:
        pages = max(1, -(-total // size))
        text = Text(f" {total} metrics  page {self.page + 1}/{pages}  all plots: x {AXES[self.axis]}")
        if self.log_y:
            text.append("  log Y", "yellow")
        if self.smoothing:
            text.append(f"  smooth {SMOOTH[self.smoothing]:g}", "yellow")
        if self.wanted:
            text.append(f"  filter {self.wanted!r}", "yellow")
        mark = next((mark for mark in self._marks() if mark.seq == self.marked), None)
        if mark is not None:
            told = f"  {clock(mark.ns)} step {mark.step}: {mark.text}  (enter: the decision)"
            text.append(told, MARK_STYLES[mark.kind])
        else:
            text.append("  marks: ", "dim")
            for kind, style in MARK_STYLES.items():
                if self.all_marks or kind != "controller":
                    text.append(f"{kind} ", style)
        self.query_one("#metrics-line", Static).update(text)
