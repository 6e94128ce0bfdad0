"""The prompt stream: which row a group of samples is drawn from.

Group g of a run is position g in an endless sequence of epochs; every epoch is one seeded permutation of all rows, so
each row appears exactly once an epoch. The mapping is a pure function of (seed, g, rows): a restarted ledger needs no
cursor file, only the next group number.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Row = TypeVar("Row")


@dataclass(slots=True)
class PromptStream(Generic[Row]):
    """Rows in shuffled epochs. Keeps one permutation (8 bytes a row) in memory and makes another when asked to."""

    rows: Sequence[Row]
    seed: int
    _epoch: int = field(default=-1, init=False)
    _order: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("a prompt stream needs at least one row")

    def epoch_of(self, group: int) -> int:
        """Return how many times every row was issued before `group` (>= 0)."""
        return group // len(self.rows)

    def prompt_at(self, group: int) -> Row:
        """Return the row of `group` (>= 0); the same for the same seed and rows, whatever was asked before."""
        if group < 0:
            raise ValueError(f"group {group} is negative")
        epoch, place = divmod(group, len(self.rows))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(len(self.rows), f"{self.seed}/{epoch}")
        return self.rows[self._order[place]]


def permutation(size: int, seed: str) -> list[int]:
    """Return a seeded order of range(size).

    Sorting by random keys uses only `random()`, whose sequence Python promises to keep between versions; `shuffle`
    has no such promise.
    """
    rng = random.Random(seed)
    keys = [rng.random() for _ in range(size)]
    return sorted(range(size), key=keys.__getitem__)
