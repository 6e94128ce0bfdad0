"""The end of a run: what it waits for, for it may take as long as a service has to finish, and what it came to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. mode: how it was told to end. code: its exit code, None when it never said."""

    mode: str = ""
    code: int | None = None
    why: str = "it was killed"

    @property
    def drained(self) -> bool:
        """Over and well, and nothing was cut off."""
        return self.code == 0 and self.mode == "drain"


def outcome(events: Iterable[tuple[str, Mapping[str, Any]]]) -> Outcome:
    """From topics and bodies of the run's events, oldest first."""
    mode, found = "", Outcome()
    for topic, body in events:
        if topic == "kernel.boot" and body.get("generation") == 1:
            mode, found = "", Outcome()  # a run that goes on: what its former part came to does not count
        if topic == "run.state":
            mode = str(body.get("mode", mode))
            over = body.get("state") == "over"
            found = Outcome(mode, body.get("code"), str(body.get("why", ""))) if over else Outcome(mode)
    return found
