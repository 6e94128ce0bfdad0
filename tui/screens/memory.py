"""7 Memory: what each process holds, shared memory, disk, and whatever memory the services measure of their devices."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from midflight.tui.chart import Curve, Plan
from midflight.tui.host import HostSample
from midflight.tui.series import Point
from midflight.tui.widgets.plot import Plot
from midflight.tui.widgets.table import Row, Table
from midflight.tui.words import bar, number, size

from .base import RunScreen

WIDTH = 24
MEASURED = ("memory/", "mem/", "gpu/", "vram", "kv_")
"""How names of measured device memory begin."""


class Memory(RunScreen):
    """Processes left, the rest right, the whole over time below."""

    NAME = "memory"
    WANTS_HOST: ClassVar[bool] = True

    def body(self) -> ComposeResult:
        """Two tables and a plot."""
        yield Static(id="memory-line", markup=False)
        with Horizontal(id="memory-tables"):
            with Vertical():
                yield Table(("PROCESS", "RSS", "", "CPU S", "FDS", "THREADS"), id="processes")
            with Vertical():
                yield Table(("WHAT", "SIZE", ""), id="places")
        yield Plot(id="memory-plot")

    def show(self) -> None:
        """The last look, and all of them."""
        last = self.model.hosts[-1] if self.model.hosts else None
        self.query_one("#memory-line", Static).update(self._line(last))
        self.query_one("#processes", Table).show_rows(self._processes(last))
        self.query_one("#places", Table).show_rows(self._places(last))
        self.query_one(Plot).draw(self._plan())

    def exported(self) -> dict[str, str]:
        """Every look."""
        rows = [f"{look.ns},{name},{use.rss}" for look in self.model.hosts for name, use in look.processes.items()]
        return {"rss.csv": "\n".join(["ns,process,rss_bytes", *rows]) + "\n"}

    def _line(self, last: HostSample | None) -> Text:
        if last is None or not last.total:
            return Text(" no process to look at: this run is over, or not on this machine", "dim")
        used = last.total - last.available
        text = Text(f" host {size(used)} of {size(last.total)} ")
        style = "red" if used > 0.9 * last.total else "yellow" if used > 0.75 * last.total else "green"
        text.append(bar(used, last.total, WIDTH, self.glyphs), style)
        rss = sum(use.rss for use in last.processes.values())
        return text.append(f"  this run {size(rss)}  free: /dev/shm {size(last.shm_free)}, disk {size(last.disk_free)}")

    def _processes(self, last: HostSample | None) -> list[Row]:
        uses = [(n, use) for n, use in (last.processes.items() if last else ()) if self.keeps(n)]
        most = max((use.rss for _, use in uses), default=1)
        return [
            (name, (name, size(use.rss), bar(use.rss, most, WIDTH, self.glyphs), f"{use.cpu_s:.0f}", str(use.fds),
                    str(use.threads)))
            for name, use in sorted(uses, key=lambda pair: -pair[1].rss)
        ]  # fmt: skip

    def _places(self, last: HostSample | None) -> list[Row]:
        places = {"shared memory (weights)": last.shm, **last.disk} if last else {}
        most = max(places.values(), default=1)
        rows: list[Row] = [
            (name, (name, size(held), bar(held, most, WIDTH, self.glyphs))) for name, held in places.items() if held
        ]
        for name, series in self.model.series.items():
            if name.rpartition("throughput/")[2].startswith(MEASURED) and self.keeps(name):
                rows.append((name, (name, number(series.last), "")))
        return rows

    def _plan(self) -> Plan:
        looks = self.model.hosts
        first = looks[0].ns if looks else 0
        points = []
        for look in looks:
            value = sum(use.rss for use in look.processes.values()) / (1 << 20)
            if value:
                points.append(Point((look.ns - first) / 1e9, look.ns, value, value, value))
        return Plan("RSS of all processes, MiB", (Curve(tuple(points)),), plain=self.glyphs.full == "#", x_name="s")
