"""Deterministic synchronous mode: a batch's samples are generated as one cohort, and again as the same cohort.

Batched decoding gives bit-equal tokens only for an equal composition of the decoded batch. So a cohort is granted
whole to one rollout, nothing else is in flight meanwhile, and if any of its leases is lost, or the ledger or the
learner starts again before all of it is batched, every member returns to `issued` and its trajectory is forgotten. Of
episodes that go on, the next turn is granted when this one is over for all: together again, in order of id.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .row import Row
from .states import OPEN, STAGE_OF_LEASE, Split, State

if TYPE_CHECKING:
    from .table import Table


def next_cohort(table: "Table") -> list[Row]:
    """Return the tickets to grant now, in order of id: the oldest cohort that waits, or a new one.

    None while the policy a cohort needs is not settled, or prompts may still be admitted to it.
    """
    issued = [row for row in table.rows.values() if row.state is State.ISSUED]
    known = [row.cohort for row in issued if row.cohort is not None]
    if known:
        oldest = min(known)
        rows = [row for row in issued if row.cohort == oldest]
        if rows[0].split is Split.TRAIN and not settled(table):
            return []
    elif not issued or (table.room() and not table.over) or not settled(table):
        return []
    else:
        rows = issued
        for row in rows:
            row.cohort = table.next_cohort
        table.next_cohort += 1
        table.note()
    return sorted(rows, key=lambda row: row.id)


def settled(table: "Table") -> bool:
    """Say whether the newest weights are those of the last step and no formed batch is still to be trained."""
    if table.published_step is None or table.published_step < table.step:
        return False
    return not table.batches.waiting and not table.totals[Split.TRAIN][State.LEASED]


def unfinished(table: "Table") -> set[int]:
    """Return the cohorts with a member that is still open and in no batch."""
    rows = (row for row in table.rows.values() if row.state in OPEN and row.batch is None)
    return {row.cohort for row in rows if row.cohort is not None}


def regenerate(table: "Table", cohorts: Iterable[int], why: str) -> None:
    """Return every unbatched member of `cohorts` to the first turn of `issued`, under a new epoch; not the refused."""
    chosen = set(cohorts)
    for row in [row for row in table.rows.values() if row.cohort in chosen and row.batch is None]:
        if row.state is State.ISSUED and row.past:
            _forget(table, row)
        elif row.state not in (State.ISSUED, State.REFUSED, State.TRAINED):
            _reset(table, row, why)


def _reset(table: "Table", row: Row, why: str) -> None:
    stage = STAGE_OF_LEASE.get(row.state)
    if stage is not None:
        table.end_lease(row, stage)
    row.epoch += 1
    _forget(table, row)
    table.move(row, State.ISSUED, why=why)
    table.queues["generate"].push(row)


def _forget(table: "Table", row: Row) -> None:
    """Forget all turns that a sample has had."""
    table.forget_payload(row)
    row.done, row.past = [0, 0, 0], ()
    row.strikes = 0
    row.rewards = ""
    row.min_version = -1 if row.split is Split.TRAIN else table.evaluating
    table.changes.rows[row.id] = row
