"""Supervision as `midflight ps` shows it."""

from midflight.messages.control import ServiceStatus, Wait

from .instance import Instance
from .supervisor import Supervisor


def services(supervisor: Supervisor, now: float) -> list[ServiceStatus]:
    """One line a process, in start order, then the attached clients."""
    lines = []
    for child in supervisor.roster:
        for instance in supervisor.registry.incarnations(child.name):
            if not child.retired or instance.live:
                lines.append(_line(instance, now, child.restarts, child.paused))
    return lines + [_line(instance, now) for instance in supervisor.registry.attached.values()]


def _line(instance: Instance, now: float, restarts: int = 0, paused: bool = False) -> ServiceStatus:
    return ServiceStatus(
        name=instance.name,
        generation=instance.generation,
        kind=instance.kind,
        state=instance.state,
        pid=instance.pid or 0,
        up_s=max(0.0, now - instance.started) if instance.live else 0.0,
        seen_s=max(0.0, now - instance.last_seen) if instance.live else 0.0,
        restarts=restarts,
        progress=instance.progress,
        phase=instance.phase or None,
        waits=[Wait(name=name, left_s=left) for name, left in instance.waits],
        stats=instance.stats,
        cause=(instance.cause or None) and instance.cause[:2000],
        slot=instance.slot,
        role=instance.role,
        paused=paused,
        attached=not instance.owned,
        part=instance.part,
    )
