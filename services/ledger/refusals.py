"""A run in which nothing happens but refusals has a mistake in its files; it says so, and ends instead of spinning."""

from dataclasses import dataclass

FEW = 8
"""So many refusals without a score, and `PATIENCE_S` without one, are too many too."""
PATIENCE_S = 60.0
NOTE_S = 20.0


@dataclass(slots=True)
class Refusals:
    """Watches the totals; `most` refusals in a row, with no sample scored in between, are too many.

    Where a refusal takes long, as one by a time limit does, FEW in PATIENCE_S seconds are too many. Times are monotonic
    seconds.
    """

    most: int
    next_note: int = 1
    _noted_at: float = 0.0
    _scored: int = 0
    _base: int = 0
    _since: float | None = None

    def worth_a_note(self, refused: int, now: float) -> bool:
        """At the first refusal, the tenth, the hundredth, and so on; every NOTE_S while nothing is scored."""
        dry = self._since is not None and refused > self._base and now - self._noted_at >= NOTE_S
        if refused < self.next_note and not dry:
            return False
        self.next_note = max(self.next_note, 10 ** len(str(refused)))
        self._noted_at = now
        return True

    def too_many(self, refused: int, scored: int, now: float) -> bool:
        """Whether the row is too long."""
        if scored > self._scored or refused == self._base:
            self._scored, self._base, self._since = scored, refused, now
        if self._since is None:
            self._since = now
        row = refused - self._base
        return row >= self.most or (row >= FEW and now - self._since >= PATIENCE_S)
