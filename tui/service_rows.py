"""A service as a row of a table, worst first."""

from collections.abc import Iterable, Mapping, Sequence

from rich.text import Text

from midflight.messages.control import ServiceStatus

from .ended import LEFT, alive
from .facts import Fact
from .host import HostSample, ProcessUse
from .widgets.table import Cell, Row
from .words import Glyphs, cut, duration, number, plain, size

BAD = frozenset({"failed", "backoff", "unresponsive"})
COLUMNS = ("SERVICE", "STATE", "VER", "DOING", "WAITS FOR", "RSS", "UP", "SEEN", "RESTARTS", "LAST EXIT")
NARROW = ("SERVICE", "STATE", "DOING", "UP", "RESTARTS")


def ordered(services: Iterable[ServiceStatus]) -> list[ServiceStatus]:
    """By trouble, then in the order of the topology."""
    return sorted(services, key=_trouble)


def identity(service: ServiceStatus) -> str:
    """Two of one name live during a swap: only with its generation is it one process."""
    return f"{service.name}#{service.generation}"


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
    return Text(f"{glyphs.shadow} {service.state}", "dim" if service.state in LEFT else "yellow")


def seen(service: ServiceStatus, silent_s: float | None) -> float:
    """Seconds since its last sign of life, as of now: the kernel's answer ages too."""
    return service.seen_s + (silent_s or 0.0)


def service_row(
    service: ServiceStatus, glyphs: Glyphs, exits: Mapping[str, Fact], host: HostSample | None, narrow: bool,
    silent_s: float | None = None,
) -> Row:  # fmt: skip
    """Key and cells, in the order of COLUMNS, or of NARROW. `silent_s`: how old the kernel's answer is."""
    version = service.stats.get("version")
    stats = " ".join(f"{key}={number(value)}" for key, value in service.stats.items() if key != "version")
    doing = plain(service.phase or stats or "-")
    key = identity(service)
    name = f"{service.name} +" if service.attached else key
    if narrow:
        return key, _greyed(service, (
            name, state_of(service, glyphs), cut(doing, 28, glyphs), duration(service.up_s), str(service.restarts)
        ))  # fmt: skip
    waits = ", ".join(wait.name for wait in service.waits[:2]) or "-"
    use = _use(service, host)
    last = exits.get(service.name)
    cause = plain(service.cause or (last.text("cause") if last else "")) or "-"
    cells: list[Cell] = [
        name, state_of(service, glyphs), "-" if version is None else f"v{version}", cut(doing, 36, glyphs),
        cut(waits, 24, glyphs), size(use.rss) if use else "-", duration(service.up_s),
        duration(seen(service, silent_s)), str(service.restarts),
        Text(cut(cause, 40, glyphs), "red" if service.state in BAD else ""),
    ]  # fmt: skip
    return key, _greyed(service, cells)


def _use(service: ServiceStatus, host: HostSample | None) -> ProcessUse | None:
    """What its own process uses; the second of a name is listed by its identity, see `pids_of`."""
    if host is None or not alive(service):
        return None
    return host.processes.get(identity(service)) or host.processes.get(service.name)


def _greyed(service: ServiceStatus, cells: Sequence[Cell]) -> Sequence[Cell]:
    """All of a row grey when nothing lives behind it."""
    if service.state not in LEFT:
        return cells
    return [Text(cell if isinstance(cell, str) else cell.plain, "dim") for cell in cells]
