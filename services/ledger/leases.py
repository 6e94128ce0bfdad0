"""Who holds what until when, for one stage. Seconds are monotonic and come from the caller."""

import math
from collections.abc import Collection


class Leases:
    """Deadlines by sample and samples by holder.

    `expired` looks at every lease, but only once the soonest deadline known could have passed.
    """

    def __init__(self) -> None:
        self._deadline: dict[int, float] = {}
        self._held: dict[str, dict[int, None]] = {}
        self._soonest = math.inf

    def __len__(self) -> int:
        return len(self._deadline)

    @property
    def ids(self) -> Collection[int]:
        """Every leased sample."""
        return self._deadline.keys()

    def renew(self, ids: Collection[int], deadline: float) -> None:
        """Move the deadline of leases that stand."""
        self._deadline.update(dict.fromkeys(ids, deadline))
        self._soonest = min(self._soonest, deadline)

    def put(self, id_: int, holder: str, deadline: float) -> None:
        """Grant, or renew with a new deadline."""
        self._deadline[id_] = deadline
        self._held.setdefault(holder, {})[id_] = None
        if deadline < self._soonest:
            self._soonest = deadline

    def drop(self, id_: int, holder: str | None) -> None:
        """End the lease of `holder` on a sample; no error when there is none."""
        self._deadline.pop(id_, None)
        held = self._held.get(holder or "")
        if held is not None:
            held.pop(id_, None)
            if not held:
                del self._held[holder or ""]

    def of(self, holder: str) -> Collection[int]:
        """Return the samples `holder` holds, oldest grant first."""
        return self._held.get(holder, {}).keys()

    def count(self, holder: str) -> int:
        """Return how many samples `holder` holds."""
        return len(self._held.get(holder, ()))

    def keep(self, holder: str, until: float) -> None:
        """Let no lease of `holder` end before `until`: it has declared a long phase."""
        for id_ in self.of(holder):
            self._deadline[id_] = max(self._deadline[id_], until)

    def expired(self, now: float) -> list[int]:
        """Return the samples whose deadline has come."""
        if now < self._soonest:
            return []
        self._soonest = min(self._deadline.values(), default=math.inf)
        return [id_ for id_, deadline in self._deadline.items() if deadline <= now]

    def shift(self, gap: float) -> None:
        """Move every deadline `gap` seconds on: the ledger itself stood still."""
        self._deadline = {id_: deadline + gap for id_, deadline in self._deadline.items()}
        self._soonest += gap
