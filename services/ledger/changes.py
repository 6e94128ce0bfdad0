"""What the book has changed and the store has not yet written.

Acknowledge after commit: the caller keeps its replies back, writes the changes in one transaction, which clears them,
and only then sends. If the write fails nothing is cleared, and the next attempt writes the same and what came since.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .evaluation import EvalResult
from .row import Row
from .states import State

Event = tuple[int, State, int, str, str]
"""One line of a sample's life: id, state, epoch, who, why."""


@dataclass(slots=True)
class Changes:
    """Rows in their present state, new trajectories, trajectories to delete, life events, meta values, results."""

    rows: dict[int, Row] = field(default_factory=dict)
    payloads: dict[int, bytes] = field(default_factory=dict)
    forget: set[int] = field(default_factory=set)
    life: list[Event] = field(default_factory=list)
    meta: dict[str, object] = field(default_factory=dict)
    results: list[EvalResult] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rows or self.forget or self.meta or self.results)

    def clear(self) -> None:
        """Forget everything; call it when a transaction holds it."""
        for part in (self.rows, self.payloads, self.forget, self.life, self.meta, self.results):
            part.clear()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a store holds at start.

    rows: those not closed. closed: how many others there are by (split, state). meta: values by key. reasons: why
    closed samples were filtered or refused, up to the colon.
    """

    rows: list[Row]
    closed: Mapping[tuple[str, str], int]
    meta: Mapping[str, object]
    reasons: Mapping[str, int] = field(default_factory=dict)
