"""The protocol of the ledger: prompts in, leases out, answers in, silence and death. Pure: no clock, no file.

`now` is always monotonic seconds from the caller. Everything a method changes is collected in `changes`, which the
caller writes in one transaction before it sends any reply or grant (acknowledge after commit).

Exactly-once effect from at-least-once messages: every grant and every revocation raises the sample's epoch, and an
answer counts only under the epoch of the standing lease. A repeated answer is `ok` again if its epoch is one that was
accepted, otherwise `stale`. An episode of several turns is generated and scored once a turn, under new epochs each
time; those of earlier turns stay known.

A strike is earned by a lease that was begun and ended with its worker, in the stages whose samples can be granted
alone (not by batches and cohorts, where blame cannot be told; there the kernel's restart limit ends a hopeless run).
"""

import json
from collections.abc import Iterable, Mapping, Sequence, Set

from . import cohorts, evaluation, recovery
from .changes import Snapshot
from .grants import Grant, match
from .row import EVAL_BASE, Continued, Generated, Outcome, Refused, Row, Scored, eval_id, train_id
from .rules import Rules
from .states import STAGE_OF_LEASE, STAGES, Split, Stage, StageName, State, Verdict
from .table import Lease, Table

KNOWN_VERSIONS = 256
"""Policy versions whose step is remembered; far more than any useful `max_lag`."""


class Book(Table):
    """What the ledger knows and how it answers. One instance per process; not thread-safe."""

    @classmethod
    def load(cls, rules: Rules, snapshot: Snapshot, now: float) -> "Book":
        """Rebuild the book from a store; see `recovery.load`. Raises ValueError if the sizes of ids have changed."""
        book = cls(rules)
        recovery.load(book, snapshot, now)
        return book

    # --- prompts and policies in ---

    def open_group(self, refused: str = "") -> int:
        """Issue the samples of group `next_group` and return its number. `refused`: why its prompt is unusable."""
        group = self.next_group
        self.next_group += 1
        self.issue([Row(train_id(group, m, self.size), group, Split.TRAIN) for m in range(self.size)], refused)
        return group

    def publish(self, version: int, step: int, holder: str, last: bool = False) -> bool:
        """Make `version`, the weights after optimizer step `step`, the newest policy. `last`: evaluate it in any case.

        False, and no effect: the version is not newer, or a former learner sent it.
        """
        if not self.leads(holder) or (self.newest is not None and version <= self.newest):
            return False
        self.newest, self.published_step = version, step
        self.last_wanted = self.last_wanted or (last and self.rules.eval_every > 0)
        self.version_steps[version] = step
        for old in sorted(self.version_steps)[:-KNOWN_VERSIONS]:
            del self.version_steps[old]
        self.note()
        evaluation.open_round(self)
        return True

    # --- leases out ---

    def want(
        self,
        holder: str,
        stage: StageName,
        n: int,
        held: Iterable[Lease],
        begun: Iterable[Lease],
        version: int,
        now: float,
        greeted: bool = False,
    ) -> list[Lease]:
        """Take a worker's whole standing in one absolute statement; return the leases it names but has lost.

        n: how many MORE samples (train: batches) it takes now; grants not yet named in `held` count against it.
        held: leases to extend. begun: leases whose effect may have started. version: policy loaded, -1 none.
        greeted: it has heard of the ledger's restart, so what an earlier ledger sent has arrived or never will:
        leases of that time which it does not name end at once.
        """
        if holder in self.dead:
            return list(held)
        at, leases, deadline = STAGES[stage], self.leases[stage], now + self.rules.lease_s[stage]
        lost: list[Lease] = []
        named: set[int] = set()
        for id_, epoch in held:
            row = self.rows.get(id_)
            if row is not None and self.stands(row, at, epoch, holder) is None:
                named.add(id_)
            elif row is None or not accepted(row, at, epoch):
                lost.append((id_, epoch))
        for id_, epoch in begun:
            row = self.rows.get(id_)
            if row is not None and not row.begun and self.stands(row, at, epoch, holder) is None:
                row.begun = True
        leases.renew(named, deadline)
        if greeted:
            self._disclaim(leases.of(holder), named, holder)
        unseen = [id_ for id_ in leases.of(holder) if id_ not in named]
        coming = len({self.rows[id_].batch for id_ in unseen}) if stage == "train" else len(unseen)
        self.credits[stage].want(holder, n - coming, version, now)
        return lost

    def match(self, now: float) -> list[Grant]:
        """Grant waiting samples to the workers that want them; see `grants.match`."""
        return match(self, now)

    def keep(self, holder: str, until: float) -> None:
        """Let no lease of `holder` expire before `until`: it has declared a phase in which it is silent."""
        for leases in self.leases.values():
            leases.keep(holder, until)

    # --- answers in ---

    def stands(self, row: Row, stage: Stage, epoch: int, holder: str) -> Verdict | None:
        """Return None if (epoch, holder) is the standing lease of `stage`, else what to say to an answer under it."""
        if row.epoch == epoch and row.state is stage.leased and row.holder == holder:
            return None
        return Verdict.OK if accepted(row, stage, epoch) else Verdict.STALE

    def answer(self, stage: StageName, id_: int, epoch: int, holder: str, outcome: Outcome) -> Verdict:
        """Take the result of a lease. Batches are answered by `trained`; a learner may only refuse single samples.

        Raises TypeError if the outcome does not belong to the stage.
        """
        row, at = self.rows.get(id_), STAGES[stage]
        if row is None:
            return self._absent(id_)
        verdict = self.stands(row, at, epoch, holder)
        if verdict is not None:
            return verdict
        if isinstance(outcome, Refused):
            self._accept(row, at)
            self._refuse(row, outcome.why, holder)
        elif isinstance(outcome, Generated) and stage == "generate":
            self._accept(row, at)
            if not row.past:
                row.min_version = outcome.min_version
            elif outcome.min_version >= 0:
                row.min_version = min(row.min_version, outcome.min_version)
            self.store_payload(row, outcome.payload)
            self.move(row, State.GENERATED, holder)
            self.queues["score"].push(row)
        elif isinstance(outcome, Scored) and stage == "score":
            self._accept(row, at)
            row.rewards = json.dumps({name: float(r) + 0.0 for name, r in outcome.rewards.items()}, sort_keys=True)
            self.move(row, State.READY if row.split is Split.TRAIN else State.EVALUATED, holder)
            evaluation.end_round(self, row)
        elif isinstance(outcome, Continued) and stage == "score":
            self._accept(row, at)
            row.past = (*row.past, row.done[0], row.done[1])
            self.store_payload(row, outcome.payload)
            self.move(row, State.ISSUED, holder, f"turn {row.turn}: the tools spoke")
            self.queues["generate"].push(row)
        else:
            raise TypeError(f"{type(outcome).__name__} is no answer to stage {stage}")
        return Verdict.OK

    def trained(self, leases: Sequence[Lease], step: int, holder: str) -> Verdict:
        """Mark the samples of a batch trained by optimizer step `step`: all of them or, if one lease is lost, none.

        A learner that hears `stale` holds weights with an effect that will be repeated: it must restore a checkpoint.
        """
        at, fresh = STAGES["train"], []
        for id_, epoch in leases:
            row = self.rows.get(id_)
            verdict = self._absent(id_) if row is None else self.stands(row, at, epoch, holder)
            if verdict in (Verdict.STALE, Verdict.UNKNOWN):
                return verdict
            if row is not None and verdict is None:
                fresh.append(row)
        for row in fresh:
            self._accept(row, at)
            row.step = step
            self.move(row, State.TRAINED, holder, f"step {step}")
        if fresh:
            self.step = max(self.step, step)  # a `trained` that was lost at first comes after later ones
            self.note()
        return Verdict.OK

    def give_back(
        self,
        stage: StageName,
        id_: int,
        epoch: int,
        holder: str,
        why: str,
        strike: bool = False,
        failed_at: float | None = None,
    ) -> Verdict:
        """End a lease without a result, through a fault of the infrastructure; the sample waits again at once.

        `strike`: the try counts all the same, for a worker that outlived its sample's program. `failed_at`: when a try
        failed, of which a sample has not endlessly many (`setbacks`).
        """
        row = self.rows.get(id_)
        if row is None:
            return self._absent(id_)
        verdict = self.stands(row, STAGES[stage], epoch, holder)
        if verdict is not None:
            return verdict
        row.begun = strike
        self.back(row, why)
        if failed_at is not None and row.state is STAGES[stage].waiting:
            failed = self.setbacks.add(id_, failed_at, self.rules.max_strikes, self.rules.give_up_s)
            if failed:
                self._refuse(row, f"no verdict: {failed}, at last: {why}", "ledger")
        return Verdict.OK

    def refuse(self, id_: int, why: str) -> None:
        """End a sample that waits or is being scored, for a reason of the ledger's own."""
        row = self.rows[id_]
        stage = STAGE_OF_LEASE.get(row.state)
        if stage is not None:
            self.end_lease(row, stage)
            row.epoch += 1
        self._refuse(row, why, "ledger")

    def unsent(self, grant: Grant) -> None:
        """Take back a grant that could not be sent, and void the credit of its holder until it speaks again."""
        self.credits[grant.stage].revoke(grant.holder)
        for id_, epoch in grant.leases:
            self.give_back(grant.stage, id_, epoch, grant.holder, "could not be sent")

    # --- silence, death, restart ---

    def expire(self, now: float) -> int:
        """End every lease whose time has come, and return how many; their holders get no more until they speak."""
        ended = 0
        for stage, leases in self.leases.items():
            for id_ in leases.expired(now):
                row = self.rows[id_]
                if row.holder is not None and row.state is STAGES[stage].leased:
                    self.credits[stage].revoke(row.holder)
                    self.back(row, f"expired at {row.holder}")
                    ended += 1
        return ended

    def holder_died(self, holder: str) -> int:
        """End every lease of a dead worker, void its credit for ever, and return how many leases ended."""
        self.dead.add(holder)
        ended = 0
        for stage, leases in self.leases.items():
            self.credits[stage].revoke(holder)
            for id_ in tuple(leases.of(holder)):
                if self.rows[id_].holder == holder:
                    self.back(self.rows[id_], f"{holder} died")
                    ended += 1
        return ended

    def time_back(self, gap: float) -> None:
        """The ledger itself stood still for `gap` seconds: nobody loses a lease or a credit for it."""
        for leases in self.leases.values():
            leases.shift(gap)
        for credits in self.credits.values():
            credits.shift(gap)
        self.setbacks.shift(gap)

    def back(self, row: Row, why: str) -> None:
        """End a lease without an answer: the sample, its whole batch, or its whole cohort waits again."""
        stage = STAGE_OF_LEASE[row.state]
        if stage.name == "train" and row.batch is not None:
            recovery.return_batch(self, row.batch, why)
        elif stage.name == "generate" and row.cohort is not None:
            cohorts.regenerate(self, (row.cohort,), why)
        else:
            row.strikes += row.begun
            self.revoke(row, stage, why)
            if row.strikes >= self.rules.max_strikes:
                self._refuse(row, f"poison: {row.strikes} begun tries ended with their worker ({why})", "ledger")
            else:
                self.queues[stage.name].push(row)

    # --- checkpoints ---

    def leads(self, holder: str) -> bool:
        """Say whether `holder` is the learner of the run: the last one to `restore`, anybody before the first."""
        return self.restored_by in ("", holder)

    def commit(self, step: int, holder: str) -> int:
        """A verified checkpoint holds everything up to `step`; close what the one before held. Returns how many."""
        return recovery.commit(self, step) if self.leads(holder) else 0

    def restore(self, step: int, holder: str, done: Mapping[int, int] | None = None) -> list[int]:
        """A learner starts from the checkpoint of `step`: re-open what was trained later; see
        `recovery.restore`."""
        return recovery.restore(self, step, holder, done or {})

    # --- private ---

    def _disclaim(self, ids: Iterable[int], named: Set[int], holder: str) -> None:
        """End the leases from before a restart that `holder` does not name: their grant was lost with the ledger."""
        inherited = self.inherited.intersection(ids)
        for id_ in inherited - named:
            if self.rows[id_].holder == holder:
                self.back(self.rows[id_], f"never reached {holder}: the ledger restarted")
        self.inherited -= inherited

    def _absent(self, id_: int) -> Verdict:
        """A closed sample is settled and needs no more; anything else was never issued."""
        base, end = 0, train_id(self.next_group, 0, self.size)
        if id_ >= EVAL_BASE:
            base, end = EVAL_BASE, eval_id(self.next_round, 0, self.eval_size)
        return Verdict.OK if base <= id_ < end else Verdict.UNKNOWN

    def _accept(self, row: Row, stage: Stage) -> None:
        row.done[stage.index] = row.epoch
        row.strikes = 0
        self.setbacks.forget(row.id)
        self.end_lease(row, stage)

    def _refuse(self, row: Row, why: str, who: str) -> None:
        self.batches.leave(row)
        self.setbacks.forget(row.id)
        self.move(row, State.REFUSED, who, why)
        evaluation.end_round(self, row)


def accepted(row: Row, stage: Stage, epoch: int) -> bool:
    """Say whether the answer under `epoch` counted, in this turn or an earlier one; no two leases share an epoch."""
    return bool(epoch) and (row.done[stage.index] == epoch or epoch in row.past)
