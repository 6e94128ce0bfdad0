"""What is left of the services once a run is over: nothing of it lives, whatever the kernel said last."""

from typing import Final

from midflight.kernel.instance import LIVE
from midflight.messages.control import ServiceStatus, Status

GONE: Final = "gone"
"""State of a service whose run ended without a word about it: its warden died, and everything with it."""
LEFT: Final = frozenset({"stopped", GONE})
"""States of services that are neither alive nor wanted."""
GONE_ALARM: Final = "the run is over: its warden is gone"


def alive(service: ServiceStatus) -> bool:
    """Whether there is a process."""
    return service.state in LIVE


def after_end(status: Status, orderly: bool) -> Status:
    """The last status of a run that is over. `orderly`: it was ended, and its end was told."""
    if not any(alive(service) or service.stats or service.paused for service in status.services):
        return status
    state = "stopped" if orderly else GONE
    services = [
        service.model_copy(
            update={"state": state if alive(service) else service.state, "stats": {}, "phase": None, "waits": [],
                    "paused": False, "up_s": 0.0}
        )
        for service in status.services
    ]  # fmt: skip
    return status.model_copy(update={"services": services})
