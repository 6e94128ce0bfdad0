"""What the end of a run waits for, in words: an end may take as long as a service has to finish its work."""

from collections.abc import Iterable

from midflight.messages.control import ServiceStatus

ASKED = ("draining", "stopping")
AWAY = ("stopped", "backoff", "failed")


def waits_for(services: Iterable[ServiceStatus]) -> str:
    """Those that were told to end; when none was, whoever is left. Others end after them, in turn."""
    left = [one for one in services if not one.attached and one.state not in AWAY]
    asked = [one for one in left if one.state in ASKED]
    return ", ".join(f"{one.name}#{one.generation} ({_doing(one)})" for one in asked or left) or "the kernel"


def _doing(one: ServiceStatus) -> str:
    waits = [f"waits for {wait.name}" for wait in one.waits[:2]]
    return ", ".join([one.state, *([one.phase] if one.phase else []), *waits])
