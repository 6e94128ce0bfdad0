"""1 Overview: the way of a sample with its queues, every service, alarms, and what was decided lately."""

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Static

from midflight.tui.feedlines import told_lines
from midflight.tui.flow import flow
from midflight.tui.service_rows import COLUMNS, NARROW, ordered, service_row
from midflight.tui.widgets.lines import Lines
from midflight.tui.widgets.table import Table

from .base import RunScreen


class Overview(RunScreen):
    """The first screen; enter on a service leads to its logs and exit cause."""

    NAME = "overview"
    WANTS_HOST: ClassVar[bool] = True
    BINDINGS: ClassVar[list[BindingType]] = [Binding("f", "follow", "follow", show=False, id="overview.follow")]

    def body(self) -> ComposeResult:
        """Topology, alarms, services in two widths, decisions."""
        yield Static(id="flow", markup=False)
        yield Static(id="alarms", markup=False)
        yield Table(COLUMNS, id="services", classes="only-wide")
        yield Table(NARROW, id="services-narrow", classes="only-narrow")
        yield Static("decisions", id="told-heading", classes="heading")
        yield Lines(id="told")

    def show(self) -> None:
        """Everything from the model."""
        lines = flow(self.model, self.about.config, self.glyphs, self.app.size.width)
        self.query_one("#flow", Static).update(Text("\n").join(lines))
        self._alarms()
        services = ordered(self.model.status.services) if self.model.status else []
        kept = [service for service in services if self.keeps(service.name, service.state, service.kind)]
        host = self.model.hosts[-1] if self.model.hosts else None
        table = self.query_one("#services-narrow" if self.narrow else "#services", Table)
        silent_s = self.model.silent_s
        table.show_rows([service_row(s, self.glyphs, self.model.exits, host, self.narrow, silent_s) for s in kept])
        told = [line for line in self.model.told.lines if self.keeps(line.text, line.who, line.why)]
        self.query_one("#told", Lines).show_lines(told_lines(told, self.narrow, self.glyphs))

    def choose(self, key: str) -> None:
        """A service."""
        self.query_one("#services-narrow" if self.narrow else "#services", Table).choose(key)

    def show_told(self, seq: int) -> None:
        """The line of an event in the feed, or the first one after it."""
        self.show()
        lines = self.query_one("#told", Lines)
        at = next((at for at, line in enumerate(self.model.told.lines) if line.seq >= seq), len(lines) - 1)
        lines.put(at)
        lines.focus()

    @on(Lines.Followed)
    def heading(self) -> None:
        """Whether new decisions come into view by themselves."""
        heading = Text("decisions")
        if not self.query_one("#told", Lines).follow:
            heading.append("  not following: f or esc goes on", "yellow")
        self.query_one("#told-heading", Static).update(heading)

    def action_follow(self) -> None:
        """`f`: to the newest decision, and stay there."""
        self.query_one("#told", Lines).action_jump(-1)

    def on_screen_suspend(self) -> None:
        """Whoever leaves for another screen has read; a dialog is not leaving."""
        if self.app.current_mode != self.NAME and self.ready:
            self.action_follow()

    def step_back(self) -> bool:
        """To the newest decision first, then the filter."""
        if not self.query_one("#told", Lines).follow:
            self.action_follow()
            return True
        return super().step_back()

    @on(DataTable.RowSelected)
    def why(self, event: DataTable.RowSelected) -> None:
        """Enter on a service: its exit cause and its logs."""
        self.midflight.go("services", str(event.row_key.value))

    def exported(self) -> dict[str, str]:
        """The decisions feed."""
        rows = [f"{line.ns},{line.step or ''},{line.who},{_quoted(line.text)},{_quoted(line.why)}"
                for line in self.model.told.lines]  # fmt: skip
        return {"decisions.csv": "\n".join(["ns,step,who,what,why", *rows]) + "\n"}

    def _alarms(self) -> None:
        alarms = self.model.alarms()
        widget = self.query_one("#alarms", Static)
        widget.display = bool(alarms)
        widget.update(Text("\n").join(Text(f" {self.glyphs.warn} {alarm}", "bold red") for alarm in alarms[:4]))


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
