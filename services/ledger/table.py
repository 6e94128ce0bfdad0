"""All samples, where they are, and the one way to move them. `Book` adds the protocol on top.

Every count follows from `move`, so that no path can change a state without the sums, the group, the stored bytes,
the life of the sample and the pending transaction knowing it.
"""

from collections import Counter

from . import admission, batches
from .changes import Changes, Snapshot
from .credit import Credits
from .leases import Leases
from .queues import Queue
from .row import Row, eval_id, train_id
from .rules import Rules
from .setbacks import Setbacks
from .states import LEGAL, OPEN, STAGES, Split, Stage, StageName, State

Lease = tuple[int, int]
"""Sample id, epoch."""


class IllegalMoveError(RuntimeError):
    """A sample was about to make a move `states.LEGAL` does not know: a defect of the ledger, never of a peer."""


class Table:
    """The rows that are not closed, the counts of all rows ever, and the indexes over them.

    totals, closed, opened: counts by split (and state) of all samples, of those not in `rows` any more, of all
        ever issued.
    step: the last optimizer step trained. committed: the last step in a verified checkpoint.
    floor: the step up to which samples are closed, one commit behind, so that either of the last two checkpoints can
        be restored.
    newest: the newest policy version. published_step: its step; None after a restore, until the next version.
    version_steps: the step of each recent version. restored_by: the learner that restored last.
    stored: bytes of the trajectories of open samples. mean_bytes: running mean of a trajectory's size.
    evaluating: policy version of the open evaluation round, -1 when none. last_evaluated: that of the latest.
    last_wanted: the final policy has yet to be evaluated.
    over: set by the caller when no prompt is left; what is open may then make a smaller last cohort and batch.
    inherited: samples leased before a restart whose holder has not yet said whether the grant reached it.
    dead: workers that will never come back (identities carry a generation).
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.changes = Changes()
        self.rows: dict[int, Row] = {}
        self.totals = {split: dict.fromkeys(State, 0) for split in Split}
        self.closed = {split: dict.fromkeys(State, 0) for split in Split}
        self.closed_reasons: Counter[str] = Counter()
        self.opened = dict.fromkeys(Split, 0)
        self.leases: dict[StageName, Leases] = {name: Leases() for name in STAGES}
        self.credits: dict[StageName, Credits] = {name: Credits(rules.credit_s) for name in STAGES}
        self.queues: dict[StageName, Queue] = {
            name: Queue(stage, self.rows, rules.solo_after) for name, stage in STAGES.items()
        }
        self.batches = batches.Batches()
        self.setbacks = Setbacks()
        self.dead: set[str] = set()
        self.inherited: set[int] = set()
        self.step = self.committed = self.floor = 0
        self.newest: int | None = None
        self.published_step: int | None = None
        self.version_steps: dict[int, int] = {}
        self.restored_by = ""
        self.next_group = self.next_round = self.next_cohort = 0
        self.evaluating = -1
        self.last_evaluated: int | None = None
        self.last_wanted = False
        self.over = False
        self.stored = 0
        self.mean_bytes = 0.0

    # --- moves ---

    def issue(self, rows: list[Row], refused: str = "") -> None:
        """Add new samples; with `refused` (why) they end at once."""
        for row in rows:
            self.rows[row.id] = row
            self.totals[row.split][State.ISSUED] += 1
            self.opened[row.split] += 1
            self.changes.rows[row.id] = row
            self.changes.life.append((row.id, State.ISSUED, 0, "ledger", ""))
            if row.split is Split.TRAIN:
                self.batches.unsettled[row.group] = self.batches.unsettled.get(row.group, 0) + 1
            if not refused:
                self.queues["generate"].push(row)
        for row in rows if refused else ():
            self.move(row, State.REFUSED, why=refused)
        self.note()

    def move(self, row: Row, state: State, who: str = "ledger", why: str = "") -> None:
        """Change a sample's state, and everything counted by it. Raises IllegalMoveError."""
        old = row.state
        if state not in LEGAL[old]:
            raise IllegalMoveError(f"sample {row.id} cannot move from {old} to {state}")
        row.state, row.why = state, why
        totals = self.totals[row.split]
        totals[old] -= 1
        totals[state] += 1
        if (old in OPEN) != (state in OPEN):
            self.stored += row.bytes if state in OPEN else -row.bytes
        self.changes.rows[row.id] = row
        self.changes.life.append((row.id, state, row.epoch, who, why))
        if row.split is Split.TRAIN and self.batches.moved(row, old):
            self.batches.complete.add(row.group)
            batches.judge(self, row.group)

    def lease(self, row: Row, stage: Stage, holder: str, now: float, solo: bool = False) -> Lease:
        """Give one waiting sample to `holder`."""
        row.epoch += 1
        row.holder, row.begun, row.solo = holder, False, solo
        self.move(row, stage.leased, holder)
        self.leases[stage.name].put(row.id, holder, now + self.rules.lease_s[stage.name])
        return row.id, row.epoch

    def end_lease(self, row: Row, stage: Stage) -> None:
        """Forget who holds a sample."""
        self.leases[stage.name].drop(row.id, row.holder)
        self.inherited.discard(row.id)
        row.holder, row.begun, row.solo = None, False, False

    def revoke(self, row: Row, stage: Stage, why: str) -> None:
        """End a lease without an answer and fence its holder: the sample waits under a new epoch."""
        self.end_lease(row, stage)
        row.epoch += 1
        self.move(row, stage.waiting, why=why)

    def store_payload(self, row: Row, payload: bytes) -> None:
        """Keep the trajectory of an open sample, in place of what there was of it."""
        self.stored += len(payload) - row.bytes
        row.bytes = len(payload)
        self.mean_bytes += (row.bytes - self.mean_bytes) / 64 if self.mean_bytes else row.bytes
        self.changes.payloads[row.id] = payload
        self.changes.forget.discard(row.id)

    def forget_payload(self, row: Row) -> None:
        """Delete the stored trajectory of a sample, if it has one."""
        if not row.bytes:
            return
        if row.state in OPEN:
            self.stored -= row.bytes
        row.bytes = 0
        self.changes.payloads.pop(row.id, None)
        self.changes.forget.add(row.id)

    # --- questions ---

    def members(self, row: Row) -> list[Row]:
        """Return every sample of the group or the evaluation round of `row`, in order of id."""
        if row.split is Split.TRAIN:
            return [self.rows[train_id(row.group, m, self.size)] for m in range(self.size)]
        return [self.rows[eval_id(row.group, m, self.eval_size)] for m in range(self.eval_size)]

    @property
    def size(self) -> int:
        """Samples in a group."""
        return self.rules.responses_per_prompt

    @property
    def eval_size(self) -> int:
        """Samples in an evaluation round."""
        return self.rules.eval_samples

    def room(self) -> bool:
        """Say whether one more group may be opened: within the cap on open samples and on bytes."""
        counts = self.totals[Split.TRAIN]
        opened = sum(counts[state] for state in OPEN)
        if not admission.fits_count(opened, self.size, self.rules.batch, self.rules.max_staleness):
            return False
        awaited = counts[State.ISSUED] + counts[State.RUNNING] + self.size
        return opened + self.size <= self.rules.batch or admission.fits_bytes(
            self.stored, awaited, self.mean_bytes, self.rules.max_ready_bytes
        )

    @property
    def finished(self) -> bool:
        """No prompt is left and every training sample is trained or terminal."""
        return self.over and not any(self.totals[Split.TRAIN][state] for state in OPEN)

    def lag(self, row: Row) -> int:
        """Return how many optimizer steps the newest policy is ahead of the oldest token of a sample."""
        return 0 if self.newest is None else admission.lag(row.min_version, self.newest, self.version_steps)

    def holds_solo(self, stage: Stage, holder: str) -> bool:
        """Say whether a worker is busy with a suspect."""
        held = self.leases[stage.name].of(holder)
        return len(held) == 1 and self.rows[next(iter(held))].solo

    def busy(self, stage: StageName) -> bool:
        """Say whether somebody works on a sample of a stage, and does not only hold it."""
        return any(self.rows[id_].begun for id_ in self.leases[stage].ids)

    def in_flight(self) -> int:
        """Return how many samples of both splits are between `issued` and `ready`."""
        return sum(self.totals[split][s] for split in Split for s in (State.RUNNING, State.GENERATED, State.SCORING))

    # --- what a store keeps beside the rows ---

    def note(self) -> None:
        """Let the next transaction write the counters."""
        self.changes.meta["book"] = self.counters()

    def counters(self) -> dict[str, object]:
        """Return the counters as JSON values."""
        return {
            "sizes": [self.size, self.eval_size],
            "opened": {split.value: n for split, n in self.opened.items()},
            "next": [self.next_group, self.next_round, self.batches.next, self.next_cohort],
            "steps": [self.step, self.committed, self.floor],
            "policy": [self.newest, self.published_step, sorted(self.version_steps.items())],
            "evaluation": [self.evaluating, self.last_evaluated, self.last_wanted],
            "restored_by": self.restored_by,
        }

    def snapshot(self) -> Snapshot:
        """Return the table in the form in which a store gives it back."""
        closed = {(s.value, state.value): n for s, counts in self.closed.items() for state, n in counts.items() if n}
        return Snapshot(list(self.rows.values()), closed, {"book": self.counters()}, dict(self.closed_reasons))
