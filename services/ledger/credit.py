"""Backpressure: how many more samples each worker of one stage has asked for.

A `want` is absolute: it replaces the former one, so it may be lost, repeated or late. It fades after `ttl` seconds,
so that a worker that fell silent attracts no more work, and it is void once the worker is known to be dead.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Credit:
    """What one worker takes: `n` more samples (train: batches), on policy version `version`, said at `at`."""

    holder: str
    n: int
    version: int
    at: float


class Credits:
    """The credit of every worker of a stage, and who comes next."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._by_holder: dict[str, Credit] = {}

    def want(self, holder: str, n: int, version: int, now: float) -> None:
        """Replace the credit of `holder`; a negative `n` is none."""
        self._by_holder[holder] = Credit(holder, max(n, 0), version, now)

    def revoke(self, holder: str) -> None:
        """Void the credit of `holder` until its next `want`."""
        self._by_holder.pop(holder, None)

    def live(self, now: float) -> list[Credit]:
        """Return the credits above zero that have not faded, the longest unserved first."""
        return [c for c in self.heard(now) if c.n > 0]

    def heard(self, now: float) -> list[Credit]:
        """Return what every worker said last, zero included, if it has not faded."""
        return [c for c in self._by_holder.values() if now - c.at <= self._ttl]

    def spend(self, credit: Credit, n: int) -> None:
        """Take `n` from a credit and send its holder to the end of the line."""
        credit.n -= n
        self._by_holder[credit.holder] = self._by_holder.pop(credit.holder)

    def shift(self, gap: float) -> None:
        """The ledger stood still for `gap` seconds: nobody grew silent meanwhile."""
        for credit in self._by_holder.values():
            credit.at += gap
