"""5 Services: exit cause first, then logs merged by time, configuration with origins, queues; pause, drain, restart."""

import json
from typing import ClassVar, Literal

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Static

from midflight.messages.control import ServiceStatus
from midflight.tui import actions
from midflight.tui.dialogs import Page
from midflight.tui.logbook import LEVELS, LogBook, Record
from midflight.tui.service_rows import BAD, identity, ordered, state_of
from midflight.tui.widgets.lines import Lines
from midflight.tui.widgets.table import Row, Table
from midflight.tui.words import Glyphs, cut, duration, number, plain

from .base import RunScreen

TABS = ("logs", "exit", "config", "queues")
LEVEL_STYLES = ("dim", "", "yellow", "red", "bold red")
COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")
READ_S = 0.5
ALL = "*"


class Services(RunScreen):
    """Left the services, right what one of them says, or all together."""

    NAME = "services"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "pause", "pause/resume", id="services.pause"),
        Binding("r", "do('restart')", "restart", id="services.restart"),
        Binding("D", "do('drain')", "drain", id="services.drain"),
        Binding("K", "do('kill')", "kill", id="services.kill"),
        Binding("s", "scale", "scale", id="services.scale"),
        Binding(
            "left_square_bracket", "tab(-1)", "previous tab", show=False, key_display="[", id="services.previous_tab"
        ),
        Binding("right_square_bracket", "tab(1)", "next tab", key_display="]", id="services.next_tab"),
        Binding("backslash", "level_prompt", "level", key_display="\\", id="services.level"),
        Binding("f", "follow", "follow", id="services.follow"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.tab = "logs"
        self.level = 0
        self.book: LogBook | None = None
        self._drawn: tuple[object, ...] = ()
        self._records: list[Record] = []

    def body(self) -> ComposeResult:
        """The table, the tabs, the lines."""
        with Horizontal():
            with Vertical(id="service-list"):
                yield Table(("SERVICE", "STATE", "UP"), id="service-table")
            with Vertical(id="service-detail"):
                yield Static(id="cause", markup=False)
                yield Static(id="tabs", markup=False)
                yield Lines(id="log")

    def on_mount(self) -> None:
        """Logs are read while they are shown."""
        super().on_mount()
        self.book = LogBook(self.about.logs)
        self.set_interval(READ_S, self.read)
        self.read()

    def read(self) -> None:
        """What was written to the logs since."""
        if self.book and self.midflight.shown is self and not self.midflight.frozen and self.book.read():
            self.stale()

    @property
    def chosen(self) -> str:
        """Name of the service under the cursor, whose logs all its generations share; empty for all."""
        key = self.query_one("#service-table", Table).chosen
        return "" if key == ALL else key.partition("#")[0]

    def show(self) -> None:
        """Services, cause, tab."""
        services = ordered(self.model.status.services) if self.model.status else []
        rows: list[Row] = [(ALL, ("all", "", ""))]
        rows += [(identity(one), (identity(one), state_of(one, self.glyphs), duration(one.up_s))) for one in services]
        self.query_one("#service-table", Table).show_rows(rows)
        self._cause()
        self._tabs()
        self._lines()

    def choose(self, key: str) -> None:
        """A service, and why it ended if it did."""
        self.show()
        self.query_one("#service-table", Table).choose(key)
        service = self._status()
        self.tab = "exit" if service and service.state in BAD else "logs"
        self.stale()

    def apply_level(self, text: str) -> None:
        """`\\ warning`: only lines at least as serious."""
        close = [at for at, name in enumerate(LEVELS) if text and name.startswith(text.lower())]
        self.level = close[0] if close else 0
        self.stale()

    @on(DataTable.RowHighlighted)
    def highlighted(self) -> None:
        """Another service: what it says."""
        self.stale()

    @on(Lines.Opened)
    def detail(self, event: Lines.Opened) -> None:
        """Enter on a log line: all of it."""
        if self.tab == "logs" and event.index < len(self._records):
            text = json.dumps(dict(self._records[event.index].raw), indent=2, ensure_ascii=False)
            self.app.push_screen(Page("log record", [Text(plain(line)) for line in text.splitlines()]))

    def action_tab(self, by: int) -> None:
        """`[` and `]`."""
        self.tab = TABS[(TABS.index(self.tab) + by) % len(TABS)]
        self.stale()

    def action_follow(self) -> None:
        """`f`: to the end, and stay there."""
        self.query_one("#log", Lines).action_jump(-1)

    def action_level_prompt(self) -> None:
        """`\\`"""
        self.midflight.open_prompt("\\")

    def action_pause(self) -> None:
        """Pause, or resume what is paused."""
        service = self._status()
        if service:
            verb: Literal["pause", "resume"] = "resume" if service.paused else "pause"
            self.midflight.propose(actions.service_do(verb, service.name, service.state))
        else:
            self.midflight.say("choose a service first", bad=True)

    def action_do(self, verb: Literal["restart", "drain", "kill"]) -> None:
        """Restart, drain or kill the service under the cursor."""
        service = self._status()
        if service:
            self.midflight.propose(actions.service_do(verb, service.name, service.state))
        else:
            self.midflight.say("choose a service first", bad=True)

    def action_scale(self) -> None:
        """How many replicas: typed."""
        service = self._status()
        if service and self.midflight.may_change():
            self.midflight.open_prompt(":", f"scale {service.slot or service.name} ")

    def edited(self) -> tuple[str, str]:
        """The whole log, not only what fits."""
        return ".log", "\n".join(self.query_one("#log", Lines).texts())

    def exported(self) -> dict[str, str]:
        """The lines of the tab."""
        return {f"{self.tab}.txt": "\n".join(self.query_one("#log", Lines).texts()) + "\n"}

    def _status(self) -> ServiceStatus | None:
        services = self.model.status.services if self.model.status else []
        key = self.query_one("#service-table", Table).chosen
        return next((service for service in services if identity(service) == key), None)

    def _cause(self) -> None:
        """Why it ended comes before everything else."""
        widget, name = self.query_one("#cause", Static), self.chosen
        service, last = self._status(), self.model.exits.get(name)
        cause = (service.cause if service else None) or (last.text("cause") if last else "")
        widget.display = bool(cause)
        if cause:
            when = f" (code {last.body.get('code')}, signal {last.body.get('signal')})" if last else ""
            bad = service is not None and service.state in BAD
            head = f"{service.state if bad and service else 'last ended'}: {plain(str(cause))}{when}"
            widget.update(Text(head, "bold red" if bad else "yellow"))

    def _tabs(self) -> None:
        text = Text()
        for tab in TABS:
            text.append(f" {tab} ", "reverse" if tab == self.tab else "dim")
        if self.tab == "logs":
            text.append(f"  {self.chosen or 'all services'}", "bold")
            text.append(f"  level {LEVELS[self.level]}" if self.level else "", "yellow")
            text.append(f"  filter {self.wanted!r}" if self.wanted else "", "yellow")
            text.append("  follow" if self.query_one("#log", Lines).follow else "", "dim")
        self.query_one("#tabs", Static).update(text)

    def _lines(self) -> None:
        lines = self.query_one("#log", Lines)
        if self.tab == "logs":
            total = self.book.total if self.book else 0
            drawn = (self.chosen, self.level, self.wanted, total)
            if drawn != self._drawn:
                self._drawn = drawn
                self._records = [record for record in (self.book.records if self.book else ()) if self._kept(record)]
                lines.show_lines([_log_line(record, self.glyphs) for record in self._records])
            return
        self._drawn = ()
        lines.follow = False
        lines.show_lines({"exit": self._exit, "config": self._config, "queues": self._queues}[self.tab]())

    def _kept(self, record: Record) -> bool:
        mine = not self.chosen or record.service == self.chosen
        return mine and record.rank >= self.level and self.keeps(record.text, record.service)

    def _exit(self) -> list[Text]:
        name, last = self.chosen, self.model.exits.get(self.chosen)
        if not name:
            return [Text("choose a service", "dim")]
        lines = [Text(f"{key}: {plain(str(value))}") for key, value in (last.body.items() if last else ())]
        lines = lines or [Text("it has not ended unasked", "dim")]
        words = self.book.last_words(name) if self.book else []
        return [*lines, Text(), Text("last output", "bold"), *(Text(f"  {word}") for word in words or ["(none)"])]

    def _config(self) -> list[Text]:
        service = self._status()
        slot = (service.slot or service.name) if service else ""
        config = self.about.config.get("services", {}).get(slot)
        if config is None:
            return [Text("choose a service of the topology", "dim")]
        lines = []
        for path, value in _flat(config):
            origin = self.about.origins.get(f"services.{slot}.{path}", "")
            line = Text(f"{path:<32} {plain(json.dumps(value))}")
            lines.append(line.append(f"   {plain(str(origin))}", "dim") if origin else line)
        return [line for line in lines if self.keeps(line.plain)]

    def _queues(self) -> list[Text]:
        service = self._status()
        if service is None:
            return [Text("choose a service", "dim")]
        lines = [Text(f"phase    {service.phase or '-'}"), Text(f"progress {service.progress}")]
        for wait in service.waits:
            left = "as long as its peer lives" if wait.left_s is None else f"{duration(max(0.0, wait.left_s))} left"
            lines.append(Text(f"waits    {wait.name}, {left}"))
        return lines + [Text(f"{key:<24} {number(value)}") for key, value in service.stats.items()]


def _flat(config: object, prefix: str = "") -> list[tuple[str, object]]:
    if isinstance(config, dict) and config:
        return [pair for key, value in config.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else key)]
    return [(prefix, config)]


def _log_line(record: Record, glyphs: Glyphs) -> Text:
    style = LEVEL_STYLES[record.rank]
    colour = COLOURS[sum(map(ord, record.service)) % len(COLOURS)]
    text = Text(no_wrap=True, overflow="crop").append(f"{record.when[11:23]} ", "dim")
    text.append(f"{cut(record.service, 12, glyphs):<12} ", colour).append(f"{record.level[:7]:<7} ", style or "dim")
    return text.append(record.text, style)
