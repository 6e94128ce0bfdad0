"""A service as a row of a table, worst first."""

from collections.abc import Iterable, Mapping

from rich.text import Text

from midflight.messages.control import ServiceStatus

from .facts import Fact
from .host import HostSample
from .widgets.table import Cell, Row
from .words import Glyphs, duration, number, plain, size

BAD = frozenset({"failed", "backoff", "unresponsive"})
COLUMNS = ("SERVICE", "STATE", "VER", "DOING", "WAITS FOR", "RSS", "UP", "SEEN", "RESTARTS", "LAST EXIT")
NARROW = ("SERVICE", "STATE", "DOING", "UP", "RESTARTS")


def ordered(services: Iterable[ServiceStatus]) -> list[ServiceStatus]:
    """By trouble, then in the order of the topology."""
    return sorted(services, key=_trouble)


def _trouble(service: ServiceStatus) -> int:
    if service.state in BAD:
        return 0
    if service.state not in ("running", "ready"):
        return 1
    return 2 if service.paused else 3


def state_of(service: ServiceStatus, glyphs: Glyphs) -> Text:
    """Its state with a mark and a colour."""
    if service.state in BAD:
        return Text(f"{glyphs.warn} {service.state}", "bold red")
    if service.paused:
        return Text(f"{glyphs.standby} paused", "yellow")
    if service.state in ("running", "ready"):
        return Text(f"{glyphs.active} {service.state}", "green")
    return Text(f"{glyphs.shadow} {service.state}", "yellow")


def service_row(
    service: ServiceStatus, glyphs: Glyphs, exits: Mapping[str, Fact], host: HostSample | None, narrow: bool
) -> Row:
    """Key and cells, in the order of COLUMNS, or of NARROW."""
    version = service.stats.get("version")
    stats = " ".join(f"{key}={number(value)}" for key, value in service.stats.items() if key != "version")
    doing = plain(service.phase or stats or "-")
    name = f"{service.name} +" if service.attached else f"{service.name}#{service.generation}"
    if narrow:
        return service.name, (
            name, state_of(service, glyphs), doing[:28], duration(service.up_s), str(service.restarts)
        )  # fmt: skip
    waits = ", ".join(wait.name for wait in service.waits[:2]) or "-"
    use = host.processes.get(service.name) if host else None
    last = exits.get(service.name)
    cause = plain(service.cause or (last.text("cause") if last else "")) or "-"
    cells: list[Cell] = [
        name, state_of(service, glyphs), "-" if version is None else f"v{version}", doing[:36], waits[:24],
        size(use.rss) if use else "-", duration(service.up_s), duration(service.seen_s), str(service.restarts),
        Text(cause[:40], "red" if service.state in BAD else ""),
    ]  # fmt: skip
    return service.name, cells
