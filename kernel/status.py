"""Supervision as `midflight ps` shows it."""

from midflight.messages.control import ServiceStatus, Wait

from .supervisor import Supervisor


def services(supervisor: Supervisor, now: float) -> list[ServiceStatus]:
    """One line a child, in start order, then the attached clients."""
    lines = []
    for child in supervisor.roster:
        instance = supervisor.registry.owned[child.name]
        lines.append(
            ServiceStatus(
                name=child.name,
                generation=instance.generation,
                kind=instance.kind,
                state=instance.state,
                pid=instance.pid or 0,
                up_s=max(0.0, now - instance.started) if instance.live else 0.0,
                seen_s=max(0.0, now - instance.last_seen) if instance.live else 0.0,
                restarts=child.restarts,
                progress=instance.progress,
                phase=instance.phase or None,
                waits=[Wait(name=name, left_s=left) for name, left in instance.waits],
                stats=instance.stats,
                cause=(instance.cause or None) and instance.cause[:2000],
            )
        )
    return lines
