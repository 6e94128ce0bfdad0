"""The prompt stream: which row a group of samples is drawn from.

Group g of a run is position g in an endless sequence of epochs; every epoch is one seeded permutation of all rows, so
each row appears exactly once an epoch. The mapping is a pure function of (seed, g, rows): a restarted ledger needs no
cursor file, only the next group number.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, Generic, TypeVar

from .raw import Rows

Row = TypeVar("Row")
SORTED: Final = 1 << 16
"""Up to so many rows an epoch's order is sorted out in memory, beyond it is walked through."""
_ROUNDS: Final = 8
_MASK: Final = (1 << 64) - 1


@dataclass(slots=True)
class PromptStream(Generic[Row]):
    """Rows in shuffled epochs, without memory for the order of a large number of them."""

    rows: Rows[Row]
    seed: int
    _epoch: int = field(default=-1, init=False)
    _order: Callable[[int], int] = field(default=abs, init=False)

    def __post_init__(self) -> None:
        if not len(self.rows):
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
            size, seed = len(self.rows), f"{self.seed}/{epoch}"
            self._epoch, self._order = (
                epoch,
                permutation(size, seed).__getitem__ if size <= SORTED else walk(size, seed),
            )
        return self.rows[self._order(place)]


def permutation(size: int, seed: str) -> list[int]:
    """Return a seeded order of range(size).

    Sorting by random keys uses only `random()`, whose sequence Python promises to keep between versions; `shuffle`
    has no such promise.
    """
    rng = random.Random(seed)
    keys = [rng.random() for _ in range(size)]
    return sorted(range(size), key=keys.__getitem__)


def walk(size: int, seed: str) -> Callable[[int], int]:
    """Return a seeded order of range(size) as a function, which needs no memory and a few microseconds a place.

    A Feistel network permutes the numbers of as many bits as size - 1 has (Luby and Rackoff 1988); what falls outside
    is permuted again until it falls inside (Black and Rogaway 2002).
    """
    bits = max(2, (size - 1).bit_length())
    low = bits // 2
    widths = ((1 << (bits - low)) - 1, (1 << low) - 1)
    """Masks of the half that a round changes, taken in turn."""
    digest = blake2b(seed.encode(), digest_size=8 * _ROUNDS).digest()
    keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS)]

    def place_of(place: int) -> int:
        while True:
            one, other = place >> low, place & widths[1]
            for number, key in enumerate(keys):
                one, other = other, one ^ (_mixed(other ^ key) & widths[number & 1])
            place = one << low | other
            if place < size:
                return place

    return place_of


def _mixed(value: int) -> int:
    """The finalizer of splitmix64, whose low bits depend on all of `value`."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31
