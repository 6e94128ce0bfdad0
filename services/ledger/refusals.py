"""A run in which nothing happens but refusals has a mistake in its files; it says so, and ends instead of spinning."""

from dataclasses import dataclass


@dataclass(slots=True)
class Refusals:
    """Watches the totals; `most` refusals in a row, with no sample scored in between, are too many."""

    most: int
    next_note: int = 1
    _scored: int = 0
    _base: int = 0

    def worth_a_note(self, refused: int) -> bool:
        """At the first refusal, the tenth, the hundredth, and so on."""
        if refused < self.next_note:
            return False
        self.next_note = 10 ** len(str(refused))
        return True

    def too_many(self, refused: int, scored: int) -> bool:
        """Whether the row is too long."""
        if scored > self._scored:
            self._scored, self._base = scored, refused
        return refused - self._base >= self.most
