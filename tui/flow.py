"""The way of a sample through a run as boxes and queues: how many are where, how full that is, who is slowest."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.text import Text

from midflight.kernel.config.registry import KindError, part_of
from midflight.messages.control import ServiceStatus

from .ended import LEFT
from .header import NARROW, PADDING
from .model import RunModel
from .service_rows import BAD, identity
from .words import Glyphs, bar, number

BARS: Final = (8, 6, 4, 2, 0)
"""How long the bars may be; the first with which all fits is taken."""
REST: Final = "  "
"""How a line begins that is not the way of a sample."""
AMBER: Final = 0.6
RED: Final = 0.85
STAGES: Final = ("rollout", "reward", "learner")
"""Kinds a sample passes, in order."""
TAKES: Final = {"reward": ("generated", "scoring"), "learner": ("ready", "leased")}
"""stage -> the ledger's states of what waits before it, or is with it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One box: the services of a kind, and the queue before it."""

    kind: str
    services: Sequence[ServiceStatus]
    waiting: int
    capacity: int
    busy: bool = False

    @property
    def full(self) -> float:
        """Share of the queue that is taken."""
        return self.waiting / self.capacity if self.capacity else 0.0


def stages(model: RunModel, config: Mapping[str, Any]) -> list[Stage]:
    """The boxes of this run, as far as it has such services."""
    services = model.status.services if model.status else []
    states = _states(model, services)
    batch, ahead = _sizes(config)
    found = []
    for kind in STAGES:
        own = _working([service for service in services if part(service.kind) == kind])
        if not own:
            continue
        if kind == "rollout":
            slots = int(config.get("services", {}).get(own[0].slot or own[0].name, {}).get("slots", 0) or 0)
            found.append(Stage(kind, own, states.get("running", 0), slots * len(own)))
        else:
            found.append(Stage(kind, own, sum(states.get(state, 0) for state in TAKES[kind]), batch * ahead))
    slow = max(found, key=lambda stage: stage.full, default=None)
    return [
        Stage(s.kind, s.services, s.waiting, s.capacity, s is slow and s.full >= RED and len(found) > 1) for s in found
    ]


def part(kind: str) -> str:
    """The built-in kind whose part a kind takes; a kind that nobody here knows takes its own."""
    try:
        return part_of(kind)
    except KindError:
        return kind


def _working(services: Sequence[ServiceStatus]) -> list[ServiceStatus]:
    """Without those that left, failed, or wait for their turn in a swap; where only failed ones are left, these."""
    there = [one for one in services if one.state not in LEFT and one.role != "standby"]
    return [one for one in there if one.state != "failed"] or there


def _states(model: RunModel, services: Sequence[ServiceStatus]) -> Mapping[str, int]:
    """Samples by state: what the ledger says in its heartbeats is newer than its whole balance, and free."""
    for service in services:
        if service.kind == "ledger" and service.stats:
            return {key: value for key, value in service.stats.items() if isinstance(value, int)}
    return model.ledger.states if model.ledger else {}


def _sizes(config: Mapping[str, Any]) -> tuple[int, int]:
    """Samples a batch, and batches that may be under way at a time."""
    for part in config.get("services", {}).values():
        if part.get("kind") == "ledger":
            batch = int(part.get("prompts_per_rollout") or 0) * int(part.get("responses_per_prompt") or 0)
            return batch, int(part.get("max_staleness") or 0) + 1
    return 0, 1


def flow(model: RunModel, config: Mapping[str, Any], glyphs: Glyphs, width: int) -> list[Text]:
    """The lines of the topology, in a terminal of so many columns."""
    boxes = stages(model, config)
    if not boxes:
        nothing = "the run is over" if model.ended else "no samples flow here"
        return [Text("waiting for the kernel's first answer" if model.status is None else nothing, "dim")]
    room = width - PADDING
    lines: list[Text] = []
    for columns in BARS:
        lines = _way(boxes, glyphs, columns, width < NARROW)
        if all(line.cell_len <= room for line in lines):
            break
    slow = next((stage.kind for stage in boxes if stage.busy), "")
    for part in _others(model, glyphs, slow):
        if not lines[-1].plain.startswith(REST) or lines[-1].cell_len + part.cell_len > room:
            lines.append(Text(REST))
        lines[-1].append_text(part)
    for line in lines:
        line.rstrip()
        line.truncate(room, overflow="ellipsis" if glyphs.more == "…" else "crop")
    return lines


def _way(boxes: Sequence[Stage], glyphs: Glyphs, columns: int, narrow: bool) -> list[Text]:
    """The boxes with their queues; each on its own line in a narrow terminal."""
    lines: list[Text] = []
    row = Text(" ")
    for at, stage in enumerate(boxes):
        if at or stage.kind == "rollout":
            if at:
                row.append(f" {glyphs.arrow} ", "dim")
            row.append_text(_queue(stage, glyphs, columns))
            row.append(f" {glyphs.arrow} ", "dim")
        row.append_text(_box(stage))
        if narrow:
            lines.append(row)
            row = Text(" ")
    return lines if narrow else [row]


def _queue(stage: Stage, glyphs: Glyphs, columns: int) -> Text:
    style = "red" if stage.full >= RED else "yellow" if stage.full >= AMBER else "green"
    names = {"rollout": "tickets", "reward": "samples", "learner": "scored"}
    text = Text(f"[{names[stage.kind]} {stage.waiting}")
    if stage.capacity:
        text.append(f"/{stage.capacity}", "" if columns else style)
        if columns:
            text.append(" ").append(bar(stage.waiting, stage.capacity, columns, glyphs), style)
    text.append("]")
    return text


def _box(stage: Stage) -> Text:
    times = f"x{len(stage.services)}" if len(stage.services) > 1 else ""
    text = Text(f"{stage.kind}{times}", "bold red" if any(one.state in BAD for one in stage.services) else "bold")
    return text


def _others(model: RunModel, glyphs: Glyphs, slow: str) -> Iterator[Text]:
    """The weights on their way back and the slowest stage; then what is not on the way of a sample."""
    if model.version >= 0:
        yield Text(f"{glyphs.up} weights v{model.version}{_behind(model)}   ")
    if slow:
        yield Text(f"bottleneck {slow}   ", "bold red")
    rulers = model.controllers.controllers if model.controllers else []
    standings = {f"{one.name}#{one.generation}": one.standing for one in rulers}
    marks = {"active": glyphs.active, "shadow": glyphs.shadow, "previous": glyphs.previous, "standby": glyphs.standby}
    for service in model.status.services if model.status else ():
        if part(service.kind) in (*STAGES, "ledger") or service.state in LEFT:
            continue
        mark = marks.get(standings.get(identity(service), service.role), glyphs.active)
        style = "red" if service.state in BAD else "green" if service.state in ("running", "ready") else "dim"
        text = Text(f"{service.name} ").append(mark, style)
        knob = _held(model, service)
        yield text.append(f" {knob}   " if knob else "   ", "dim")


def _held(model: RunModel, service: ServiceStatus) -> str:
    held = [knob for knob in (model.knobs.knobs if model.knobs else ()) if knob.owner == identity(service)]
    return " ".join(f"{knob.declaration.name}={number(knob.value)}" for knob in held[:2])


def _behind(model: RunModel) -> str:
    """How far the slowest rollout is behind the newest weights, both as of the kernel's last answer."""
    versions: dict[str, list[int]] = {}
    for service in _working(model.status.services) if model.status else ():
        if isinstance(version := service.stats.get("version"), int):
            versions.setdefault(part(service.kind), []).append(version)
    rollouts = versions.get("rollout", [])
    behind = max(map(max, versions.values())) - min(rollouts) if rollouts else 0
    return f", the slowest rollout {behind} behind" if behind > 0 else ""
