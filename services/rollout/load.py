"""What a rollout tells of its load every few seconds, in events of topic `throughput`.

Rates are means over the time since the last event; `active`, `queued` and `kv_use` are the most in it, looked at every
`LOOK_S`.
"""

from dataclasses import dataclass
from typing import Final

from midflight.messages.base import Scalar

REPORT_S: Final = 2.0
LOOK_S: Final = 0.1


@dataclass(slots=True)
class Load:
    """Sums since `since` (monotonic seconds).

    busy_s: seconds of computing. tokens: sampled. active: requests running. queued: requests that the engine holds and
    cannot run for want of memory. kv_use: share of the cache's places that hold a token.
    """

    since: float
    busy_s: float = 0.0
    tokens: int = 0
    active: int = 0
    queued: int = 0
    kv_use: float = 0.0
    _next_look: float = 0.0

    def due(self, now: float) -> bool:
        """Whether to look again."""
        return now >= self._next_look

    def look(self, now: float, active: int, queued: int, kv_use: float) -> None:
        """Take the present load."""
        self._next_look = now + LOOK_S
        self.active, self.queued = max(self.active, active), max(self.queued, queued)
        self.kv_use = max(self.kv_use, kv_use)

    def report(self, now: float) -> dict[str, Scalar] | None:
        """Every `REPORT_S` the body of an event and a new beginning; nothing when nothing was generated."""
        window = now - self.since
        if window < REPORT_S:
            return None
        body: dict[str, Scalar] = {"tokens_per_s": self.tokens / window, "busy": min(1.0, self.busy_s / window)}
        body |= {"active": self.active, "queued": self.queued, "kv_use": self.kv_use}
        told = bool(self.tokens)
        self.since, self.busy_s, self.tokens = now, 0.0, 0
        self.active, self.queued, self.kv_use = 0, 0, 0.0
        return body if told else None
