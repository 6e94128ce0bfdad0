"""A run in which nothing happens but refusals has a mistake in its files; it says so, and ends instead of spinning."""

from dataclasses import dataclass

FEW = 8
"""So many refusals without a score, and `PATIENCE_S` without one, are too many too."""
PATIENCE_S = 60.0
NOTE_S = 20.0


@dataclass(slots=True)
class Reading:
    """The training rows read by this process; `most` unusable ones in a row, with no other between them, are hopeless.

    read, unusable: rows so far. row: unusable ones since the last other. why: the reason of the last.
    """

    most: int
    read: int = 0
    unusable: int = 0
    row: int = 0
    why: str = ""

    def add(self, why: str) -> None:
        """Count a row; `why` it cannot be used, or nothing."""
        self.read += 1
        if why:
            self.unusable, self.row, self.why = self.unusable + 1, self.row + 1, why
        else:
            self.row = 0

    @property
    def hopeless(self) -> bool:
        """Whether it is time to give up."""
        return self.row >= self.most

    def told(self) -> str:
        """The share of the rows that cannot be used."""
        share = 100 * self.unusable / self.read
        return f"{self.unusable:,} of the last {self.read:,} rows read ({share:.3g} %) cannot be used"


@dataclass(slots=True)
class Refusals:
    """Watches the totals; `most` refusals in a row, with no sample scored in between, are too many.

    Where a refusal takes long, as one by a time limit does, FEW in PATIENCE_S seconds are too many. Times are monotonic
    seconds. row: refusals since the last score, or since it began to watch.
    """

    most: int
    row: int = 0
    next_note: int = 1
    _noted_at: float = 0.0
    _scored: int = 0
    _base: int = 0
    _since: float | None = None

    def worth_a_note(self, refused: int, now: float) -> bool:
        """At the first refusal, the tenth, the hundredth, and so on; every NOTE_S while nothing is scored."""
        dry = self.row > 0 and now - self._noted_at >= NOTE_S
        if refused < self.next_note and not dry:
            return False
        self.next_note = max(self.next_note, 10 ** len(str(refused)))
        self._noted_at = now
        return True

    def too_many(self, refused: int, scored: int, now: float) -> bool:
        """Whether the row is too long. What was refused before the first call is not judged."""
        if self._since is None or scored > self._scored or refused <= self._base:
            self._scored, self._base, self._since = scored, refused, now
        self.row = refused - self._base
        return self.row >= self.most or (self.row >= FEW and now - self._since >= PATIENCE_S)


def because(why: str) -> str:
    """The end of a sentence: the last reason, where one is known."""
    return f"; the last: {why}" if why else ""
