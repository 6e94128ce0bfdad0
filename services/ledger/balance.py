"""Does every sample add up? The sums, and every way in which they can be wrong."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from .changes import Snapshot
from .row import Row, reason_of
from .states import OPEN, STAGE_OF_LEASE, Split, State

if TYPE_CHECKING:
    from .table import Table

REASONED = (State.FILTERED, State.REFUSED)


@dataclass(frozen=True, slots=True)
class Balance:
    """Issued samples and where they are, by split.

    reasons: why samples were filtered or refused, up to the colon. faults: what is wrong with single rows.
    step, committed: the last step trained, and the last in a verified checkpoint.
    """

    issued: Mapping[str, int]
    states: Mapping[str, Mapping[str, int]]
    reasons: Mapping[str, int] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    step: int = 0
    committed: int = 0

    def problems(self) -> list[str]:
        """Return every identity that does not hold; empty when the ledger balances."""
        found = list(self.faults)
        for split in Split:
            states = self.states.get(split, {})
            total, issued = sum(states.values()), self.issued.get(split, 0)
            if total != issued:
                found.append(f"{split}: {issued} issued but {total} in some state")
            found += [f"{split}: {n} samples {state}" for state, n in states.items() if n < 0]
        explained = sum(self.reasons.values())
        unusable = sum(self.states.get(split, {}).get(state, 0) for split in Split for state in REASONED)
        if explained != unusable:
            found.append(f"{unusable} samples are filtered or refused, {explained} of them with a reason")
        if self.committed > self.step:
            found.append(f"step {self.committed} is committed but only step {self.step} was trained")
        return found


def balance(snapshot: Snapshot) -> Balance:
    """Add up a snapshot, of a book (`Book.snapshot`) or of a store (`Store.load`)."""
    states = {split.value: dict.fromkeys((s.value for s in State), 0) for split in Split}
    for (split, state), n in snapshot.closed.items():
        states[split][state] += n
    reasons = Counter(snapshot.reasons)
    faults: list[str] = []
    seen: set[int] = set()
    for row in snapshot.rows:
        states[row.split][row.state] += 1
        if row.state in REASONED:
            reasons[reason_of(row.why)] += 1
        if row.id in seen:
            faults.append(f"sample {row.id} is there twice")
        seen.add(row.id)
        faults += row_faults(row)
    saved = cast(dict[str, Any], snapshot.meta.get("book", {"opened": {}, "steps": [0, 0, 0]}))
    step, committed, _ = saved["steps"]
    return Balance(saved["opened"], states, reasons, tuple(faults), step, committed)


def row_faults(row: Row) -> list[str]:
    """Return what contradicts itself within one row."""
    leased, trained = row.state in STAGE_OF_LEASE, row.state is State.TRAINED
    checks = {
        "is trained without a step": trained and row.step is None,
        "has a step but is not trained": not trained and row.step is not None,
        "is leased without a holder": leased and row.holder is None,
        "has a holder but no lease": not leased and row.holder is not None,
        "is leased to a learner outside any batch": row.state is State.LEASED and row.batch is None,
        "is in a batch but not ready, leased or trained": row.batch is not None
        and row.state not in (State.READY, State.LEASED, State.TRAINED),
        "is ready without rewards": row.state is State.READY and not row.rewards,
        "was granted no epoch": leased and row.epoch < 1,
        "goes on without a trajectory": bool(row.past) and row.state in OPEN and not row.bytes,
    }
    return [f"sample {row.id} {what}" for what, wrong in checks.items() if wrong]


def audit(table: "Table") -> list[str]:
    """Return what contradicts itself in a living table: the balance, and every index against the rows."""
    found = balance(table.snapshot()).problems()
    live: dict[Split, Counter[State]] = {split: Counter() for split in Split}
    for row in table.rows.values():
        live[row.split][row.state] += 1
    for split in Split:
        for state in State:
            if table.totals[split][state] != live[split][state] + table.closed[split][state]:
                found.append(f"{split} {state}: counted {table.totals[split][state]}, there are {live[split][state]}")
    places = Counter(id_ for members in table.batches.members.values() for id_ in members)
    found += [f"sample {id_} is in {n} batches" for id_, n in places.items() if n > 1]
    for row in table.rows.values():
        if (row.batch is not None) != (row.id in places):
            found.append(f"sample {row.id} and batch {row.batch} do not agree")
        stage = STAGE_OF_LEASE.get(row.state)
        if stage is not None and row.holder is not None and row.id not in table.leases[stage.name].of(row.holder):
            found.append(f"sample {row.id} is leased to {row.holder} without a deadline")
    leases = sum(len(leases) for leases in table.leases.values())
    if leases != sum(live[split][state] for split in Split for state in STAGE_OF_LEASE):
        found.append(f"{leases} deadlines for another number of leases")
    stored = sum(row.bytes for row in table.rows.values() if row.state in OPEN)
    if stored != table.stored:
        found.append(f"{table.stored} bytes counted, {stored} stored")
    return found
