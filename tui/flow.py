"""The way of a sample through a run as boxes and queues: how many are where, how full that is, who is slowest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.text import Text

from midflight.messages.control import ServiceStatus

from .model import RunModel
from .service_rows import BAD
from .words import Glyphs, bar, number

BAR: Final = 8
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
        own = [service for service in services if service.kind == kind]
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


def flow(model: RunModel, config: Mapping[str, Any], glyphs: Glyphs, narrow: bool) -> list[Text]:
    """The lines of the topology."""
    boxes = stages(model, config)
    if not boxes:
        return [
            Text("waiting for the kernel's first answer" if model.status is None else "no samples flow here", "dim")
        ]
    lines: list[Text] = []
    row = Text(" ", no_wrap=True, overflow="crop")
    for at, stage in enumerate(boxes):
        if at or stage.kind == "rollout":
            if at:
                row.append(f" {glyphs.arrow} ", "dim")
            row.append_text(_queue(stage, glyphs))
            row.append(f" {glyphs.arrow} ", "dim")
        row.append_text(_box(stage))
        if narrow:
            lines.append(row)
            row = Text(" ", no_wrap=True, overflow="crop")
    lines.append(row)
    slow = next((stage.kind for stage in boxes if stage.busy), "")
    back, others = _others(model, glyphs, slow)
    lines += [back, Text(" ").append_text(others)] if narrow else [back.append_text(others)]
    return [line for line in lines if line.plain.strip()]


def _queue(stage: Stage, glyphs: Glyphs) -> Text:
    style = "red" if stage.full >= RED else "yellow" if stage.full >= AMBER else "green"
    names = {"rollout": "tickets", "reward": "samples", "learner": "scored"}
    text = Text(f"[{names[stage.kind]} {stage.waiting}")
    if stage.capacity:
        text.append(f"/{stage.capacity} ")
        text.append(bar(stage.waiting, stage.capacity, BAR, glyphs), style)
    text.append("]")
    return text


def _box(stage: Stage) -> Text:
    times = f"x{len(stage.services)}" if len(stage.services) > 1 else ""
    text = Text(f"{stage.kind}{times}", "bold red" if any(one.state in BAD for one in stage.services) else "bold")
    return text


def _others(model: RunModel, glyphs: Glyphs, slow: str) -> tuple[Text, Text]:
    """The weights on their way back and the slowest stage; what is not on the way of a sample."""
    back, text = Text(" "), Text(no_wrap=True, overflow="crop")
    back.append(f"{glyphs.up} weights v{model.version}{_behind(model)}   " if model.version >= 0 else "")
    if slow:
        back.append(f"bottleneck {slow}   ", "bold red")
    rulers = {one.name: one.standing for one in model.controllers.controllers} if model.controllers else {}
    marks = {"active": glyphs.active, "shadow": glyphs.shadow, "previous": glyphs.previous, "standby": glyphs.standby}
    for service in model.status.services if model.status else ():
        if service.kind in (*STAGES, "ledger"):
            continue
        mark = marks[rulers.get(service.name, "active")]
        style = "red" if service.state in BAD else "green" if service.state in ("running", "ready") else "dim"
        text.append(f"{service.name} ").append(mark, style)
        knob = _held(model, service)
        text.append(f" {knob}   " if knob else "   ", "dim")
    return back, text


def _held(model: RunModel, service: ServiceStatus) -> str:
    identity = f"{service.name}#{service.generation}"
    held = [knob for knob in (model.knobs.knobs if model.knobs else ()) if knob.owner == identity]
    return " ".join(f"{knob.declaration.name}={number(knob.value)}" for knob in held[:2])


def _behind(model: RunModel) -> str:
    """How far the slowest rollout is behind the newest weights, both as of the kernel's last answer."""
    versions: dict[str, list[int]] = {}
    for service in model.status.services if model.status else ():
        if isinstance(version := service.stats.get("version"), int):
            versions.setdefault(service.kind, []).append(version)
    rollouts = versions.get("rollout", [])
    behind = max(map(max, versions.values())) - min(rollouts) if rollouts else 0
    return f", the slowest rollout {behind} behind" if behind > 0 else ""
