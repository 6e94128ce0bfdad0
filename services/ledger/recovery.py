"""What survives: the ledger's own restart, a committed checkpoint, a learner restored to an earlier step.

restart   leases stand under their epochs and holders; whoever does not claim its own in time loses it
commit    samples in the last but one checkpoint are closed: their trajectories go, their rows leave memory
restore   what was trained after the restored step is ready again, in the very batches it was trained in
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from . import cohorts
from .batches import SETTLED
from .changes import Snapshot
from .row import Row, reason_of, train_id
from .states import OPEN, STAGE_OF_LEASE, STAGES, TERMINAL, Split, State

if TYPE_CHECKING:
    from .table import Table


class RestoreTooOldError(ValueError):
    """The step lies before what two commits have closed; its trajectories are gone."""


def load(table: "Table", snapshot: Snapshot, now: float) -> None:
    """Fill an empty table from a store. Raises ValueError if the sizes that ids are made of have changed.

    Leases keep epoch and holder and end `claim_s` from now (batches: their lease time) unless the holder names them.
    Whether they were begun is not stored: the first `want` says it. Deterministic mode restarts unfinished cohorts.
    """
    _load_counters(table, snapshot)
    for row in snapshot.rows:
        table.rows[row.id] = row
        table.totals[row.split][row.state] += 1
        _index(table, row, now)
    for group, left in table.batches.unsettled.items():
        if not left and _trainable(table, group):
            table.batches.complete.add(group)
    sizes = [row.bytes for row in table.rows.values() if row.bytes]
    table.mean_bytes = sum(sizes) / len(sizes) if sizes else 0.0
    if table.rules.deterministic:
        cohorts.regenerate(table, cohorts.unfinished(table), "ledger restarted")


def _load_counters(table: "Table", snapshot: Snapshot) -> None:
    if "book" not in snapshot.meta:
        return
    saved = cast(dict[str, Any], snapshot.meta["book"])
    if saved["sizes"] != [table.size, table.eval_size]:
        raise ValueError(
            f"this run's samples are named by [responses_per_prompt, evaluation prompts] = {saved['sizes']}; "
            f"the configuration now says {[table.size, table.eval_size]}: set it back, or start a new run"
        )
    table.opened = {Split(name): n for name, n in saved["opened"].items()}
    table.next_group, table.next_round, table.batches.next, table.next_cohort = saved["next"]
    table.step, table.committed, table.floor = saved["steps"]
    table.newest, table.published_step, steps = saved["policy"]
    table.version_steps = dict(steps)
    table.evaluating, table.last_evaluated, table.last_wanted = saved["evaluation"]
    table.restored_by = saved["restored_by"]
    table.closed_reasons.update(snapshot.reasons)
    for (split, state), n in snapshot.closed.items():
        table.closed[Split(split)][State(state)] += n
        table.totals[Split(split)][State(state)] += n


def _index(table: "Table", row: Row, now: float) -> None:
    """Put one loaded row into the queue, lease table, group and batch it belongs to."""
    stage = STAGE_OF_LEASE.get(row.state)
    if stage is not None and row.holder is not None:
        window = table.rules.lease_s["train"] if stage.name == "train" else table.rules.claim_s
        table.leases[stage.name].put(row.id, row.holder, now + window)
        table.inherited.add(row.id)
        row.solo = stage.name != "train" and row.strikes >= table.rules.solo_after
    for waiting in STAGES.values():
        if row.state is waiting.waiting and waiting.name != "train":
            table.queues[waiting.name].push(row)
    if row.state in OPEN:
        table.stored += row.bytes
    if row.split is Split.TRAIN:
        table.batches.unsettled[row.group] = table.batches.unsettled.get(row.group, 0) + (row.state not in SETTLED)
    if row.batch is not None:
        table.batches.members.setdefault(row.batch, []).append(row.id)
        if row.state is State.READY:
            table.batches.wait(row.batch)


def _trainable(table: "Table", group: int) -> bool:
    """Say whether a complete group has members that are in no batch."""
    members = table.members(table.rows[train_id(group, 0, table.size)])
    return any(row.state is State.READY and row.batch is None for row in members)


def return_batch(table: "Table", batch: int, why: str) -> None:
    """End every lease on a batch; it waits whole, before all younger ones."""
    for id_ in table.batches.members[batch]:
        if table.rows[id_].state is State.LEASED:
            table.revoke(table.rows[id_], STAGES["train"], why)
    table.batches.wait(batch)


def commit(table: "Table", step: int) -> int:
    """Take note that a checkpoint holds everything up to `step`; close what the commit before it held.

    One commit behind, because the last two checkpoints are kept and either may be restored. A group closes when all
    its members are terminal or trained so far back. Returns the samples closed; 0 for a repeated or impossible step.
    """
    if not table.committed < step <= table.step:
        return 0
    table.floor, table.committed = table.committed, step
    table.note()
    pending = cohorts.unfinished(table) if table.rules.deterministic else set()
    groups: dict[tuple[Split, int], list[Row]] = {}
    for row in table.rows.values():
        groups.setdefault((row.split, row.group), []).append(row)
    done = [
        row
        for rows in groups.values()
        if all(_settled_for_ever(table, row) and row.cohort not in pending for row in rows)
        for row in rows
    ]
    for row in done:
        _close(table, row)
    for batch in {row.batch for row in done if row.batch is not None}:
        table.batches.members[batch] = [id_ for id_ in table.batches.members[batch] if id_ in table.rows]
        if not table.batches.members[batch]:
            del table.batches.members[batch]
    return len(done)


def _settled_for_ever(table: "Table", row: Row) -> bool:
    trained = row.state is State.TRAINED and row.step is not None and row.step <= table.floor
    return trained or row.state in TERMINAL


def _close(table: "Table", row: Row) -> None:
    """Let a row leave memory, and its trajectory the disk, unless it was refused: someone may want to know why."""
    row.closed = True
    table.changes.rows[row.id] = row
    if row.state is not State.REFUSED:
        table.forget_payload(row)
    table.closed[row.split][row.state] += 1
    if row.state in (State.FILTERED, State.REFUSED):
        table.closed_reasons[reason_of(row.why)] += 1
    if row.split is Split.TRAIN:
        table.batches.unsettled.pop(row.group, None)
    del table.rows[row.id]


def restore(table: "Table", step: int, holder: str, done: Mapping[int, int]) -> list[int]:
    """Re-open every sample trained after `step`, in its batch, and return their ids in order.

    holder: the learner that starts; its repeated `restore` has no effect, and the leases of its predecessor end.
    done: id -> step of the samples the checkpoint holds, for those whose `trained` never arrived.
    Raises RestoreTooOldError, and ValueError if `done` names samples that were never issued.
    """
    if table.restored_by == holder:
        return []
    if step < table.floor:
        raise RestoreTooOldError(
            f"cannot restore step {step}: samples up to step {table.floor} are closed; "
            "their checkpoints are gone or damaged, so this run cannot go on; start a new one"
        )
    _mark_done(table, holder, done)
    for batch, members in table.batches.members.items():
        if any(table.rows[id_].state is State.LEASED for id_ in members):
            return_batch(table, batch, f"learner restored step {step}")
    again = [row for row in table.rows.values() if row.state is State.TRAINED and (row.step or 0) > step]
    for row in sorted(again, key=lambda row: row.id):
        _reopen(table, row, f"learner restored step {step}")
    table.step, table.committed, table.restored_by = step, min(table.committed, step), holder
    table.published_step = None
    table.note()
    if table.rules.deterministic:
        cohorts.regenerate(table, cohorts.unfinished(table), f"learner restored step {step}")
    return sorted(row.id for row in again)


def _mark_done(table: "Table", holder: str, done: Mapping[int, int]) -> None:
    ahead = [id_ for id_ in done if id_ >= train_id(table.next_group, 0, table.size)]
    if ahead:
        raise ValueError(
            f"the checkpoint has trained sample {ahead[0]} and {len(ahead) - 1} more that this ledger never issued: "
            "ledger.sqlite is older than the checkpoint; restore an older one"
        )
    for id_, step in done.items():
        row = table.rows.get(id_)
        if row is None or row.state in TERMINAL:
            continue
        row.step = step
        if row.state is State.TRAINED:
            table.changes.rows[id_] = row
            continue
        stage = STAGE_OF_LEASE.get(row.state)
        if stage is not None:
            table.end_lease(row, stage)
        row.epoch += 1
        table.move(row, State.TRAINED, holder, f"step {step}, told by its checkpoint")


def _reopen(table: "Table", row: Row, why: str) -> None:
    row.epoch += 1
    row.done[STAGES["train"].index] = 0
    row.step = None
    table.move(row, State.READY, why=why)
    if row.batch is not None:
        table.batches.wait(row.batch)
    elif not table.batches.unsettled[row.group]:
        table.batches.complete.add(row.group)
