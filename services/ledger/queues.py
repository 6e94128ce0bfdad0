"""The samples that wait for one stage, in the order they are granted: evaluation first, then the oldest group.

Evaluation goes first because its rounds are small and bounded, while training work never runs out. Within a split,
episodes that go on come before new ones: they are older. Suspects (samples with `solo_after` strikes) wait apart,
since each is granted alone. Entries are never searched for: one whose sample
has moved on is skipped when it comes up.
"""

import heapq
from collections.abc import Mapping

from .row import Row
from .states import Split, Stage


class Queue:
    """Waiting samples of `stage`. `rows` is the book's table."""

    def __init__(self, stage: Stage, rows: Mapping[int, Row], solo_after: int) -> None:
        self._stage = stage
        self._rows = rows
        self._solo_after = solo_after
        self._heaps: dict[Split, list[int]] = {Split.EVAL: [], Split.TRAIN: []}
        self._going_on: dict[Split, list[int]] = {Split.EVAL: [], Split.TRAIN: []}
        self._suspects: list[int] = []

    def push(self, row: Row) -> None:
        """Let a sample wait."""
        heaps = self._going_on if row.past else self._heaps
        heapq.heappush(self._suspects if row.strikes >= self._solo_after else heaps[row.split], row.id)

    def take(self, split: Split) -> Row | None:
        """Remove and return the oldest waiting sample of `split` that may be granted with others."""
        going_on = self._pop(self._going_on[split], suspect=False) if self._going_on[split] else None
        return going_on or self._pop(self._heaps[split], suspect=False)

    def first_suspect(self) -> Row | None:
        """Return the oldest waiting suspect; it waits on."""
        return self._first(self._suspects, suspect=True)

    def take_suspect(self) -> Row | None:
        """Remove and return the oldest waiting suspect."""
        return self._pop(self._suspects, suspect=True)

    def _pop(self, heap: list[int], suspect: bool) -> Row | None:
        row = self._first(heap, suspect)
        while heap and row is not None and heap[0] == row.id:  # it may have come to wait twice
            heapq.heappop(heap)
        return row

    def _first(self, heap: list[int], suspect: bool) -> Row | None:
        while heap:
            row = self._rows.get(heap[0])
            if row and row.state is self._stage.waiting and (row.strikes >= self._solo_after) == suspect:
                return row
            heapq.heappop(heap)
        return None
