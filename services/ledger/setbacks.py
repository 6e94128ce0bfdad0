"""Faults of the infrastructure, sample by sample: each is tried again, and not for ever.

A try that failed through no fault of the sample is no strike. But a service that stays away gives back whatever it
gets, and a sample that nobody can score would go round for ever. So a sample is given up when it has failed often *and*
for long: often alone would refuse good samples while a service is restarted, long alone what waited for its turn.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Setback:
    """Failed tries in a row of one sample at one stage, and when the first was, in monotonic seconds."""

    since: float
    tries: int = 0


class Setbacks:
    """The samples that have failed so and not succeeded since. Memory only: a restarted ledger begins anew."""

    def __init__(self) -> None:
        self._failed: dict[int, Setback] = {}

    def __len__(self) -> int:
        return len(self._failed)

    def add(self, id_: int, now: float, most: int, within: float) -> str:
        """Count a failed try; why the sample is given up, "" while it is not: `most` tries, `within` seconds."""
        one = self._failed.setdefault(id_, Setback(now))
        one.tries += 1
        if one.tries < most or now - one.since < within:
            return ""
        return f"{one.tries} tries in {now - one.since:.0f} s failed"

    def forget(self, id_: int) -> None:
        """It succeeded, or is settled."""
        self._failed.pop(id_, None)

    def shift(self, gap: float) -> None:
        """The ledger itself stood still for `gap` seconds, which count for nothing."""
        for one in self._failed.values():
            one.since += gap
