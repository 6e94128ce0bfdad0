"""Restart of the ledger, commit, and a learner restored to an earlier step."""

import dataclasses

import pytest
from support.ledger_tools import LEARNER, book, generate, score, small, take, train, trained_steps

from midflight.services.ledger.balance import audit
from midflight.services.ledger.book import Book
from midflight.services.ledger.recovery import RestoreTooOldError
from midflight.services.ledger.row import Generated, Scored
from midflight.services.ledger.states import Split, State, Verdict


def restarted(b: Book, now: float = 0.0) -> Book:
    """What a new process makes of the same store."""
    snapshot = b.snapshot()
    rows = [dataclasses.replace(row, begun=False, solo=False, done=[*row.done]) for row in snapshot.rows]
    return Book.load(b.rules, dataclasses.replace(snapshot, rows=rows), now)


def test_a_claimed_lease_survives_the_ledger() -> None:
    """A holder that names its lease in time keeps it; the others return when claim_s is over."""
    b = book(2)
    kept, lost = take(b, "generate", "a#1", n=1), take(b, "generate", "b#1", n=1)
    b = restarted(b, 100.0)
    assert b.want("a#1", "generate", 0, kept, [], 0, 101.4) == []
    assert b.expire(101.5) == 1
    assert b.answer("generate", *kept[0], "a#1", Generated(b"x", 0)) is Verdict.OK
    assert b.answer("generate", *lost[0], "b#1", Generated(b"x", 0)) is Verdict.STALE
    assert not audit(b)


def test_a_grant_that_died_with_the_ledger_returns_at_once() -> None:
    """Committed, but never sent: a holder that has heard of the restart and does not name the lease never got it."""
    b = book(2)
    generate(b)
    score(b)
    leases = take(b, "train", n=1)
    b = restarted(b, 100.0)
    b.want(LEARNER, "train", 1, [], [], 0, 100.1)  # sent before it heard: the batch may still be on its way
    assert b.totals[Split.TRAIN][State.LEASED] == len(leases)
    b.want(LEARNER, "train", 1, [], [], 0, 100.2, greeted=True)
    assert [grant.leases for grant in b.match(100.2)] == [[(id_, epoch + 2) for id_, epoch in leases]]
    assert not audit(b)


def test_what_is_named_or_granted_anew_is_not_disclaimed() -> None:
    """Only leases of before the restart end by not being named; a fresh grant may still be on its way."""
    b = book(2)
    kept = take(b, "generate", "a#1", n=1)
    b = restarted(b)
    b.want("a#1", "generate", 1, kept, [], 0, 0.1, greeted=True)
    assert len(b.match(0.1)) == 1
    b.want("a#1", "generate", 0, kept, [], 0, 0.2, greeted=True)
    b.want("a#1", "generate", 0, [], [], 0, 0.3, greeted=True)
    assert b.totals[Split.TRAIN][State.RUNNING] == 2


def test_an_answer_after_restart_needs_no_claim() -> None:
    """A result resent to the new ledger under its epoch counts."""
    b = book(1)
    (lease, *_) = take(b, "generate")
    b = restarted(b, 50.0)
    assert b.answer("generate", *lease, "thief#1", Generated(b"x", 0)) is Verdict.STALE
    assert b.answer("generate", *lease, "generate#1", Generated(b"x", 0)) is Verdict.OK


def test_a_batch_is_not_given_away_during_a_long_step() -> None:
    """A learner may be silent longer than claim_s; its batch waits for it as long as its lease."""
    b = book(2)
    generate(b)
    score(b)
    leases = take(b, "train", n=1)
    b = restarted(b, 100.0)
    assert b.expire(130.0) == 0
    assert b.trained(leases, 1, LEARNER) is Verdict.OK


def test_death_notice_works_after_restart() -> None:
    """The holder of a lease is stored, so that its death is understood by the next ledger."""
    b = book(2)
    generate(b)
    score(b)
    take(b, "train", n=1)
    b = restarted(b)
    assert b.holder_died(LEARNER) == 1
    assert len(take(b, "train", "learner#2", n=1)) == 4


def test_restart_loses_nothing() -> None:
    """Every state, count, batch and queue is the same after a reload."""
    b = book(6)
    generate(b)
    score(b)
    train(b, 1)
    take(b, "train", n=1)
    b.open_group()
    take(b, "generate", n=1)
    again = restarted(b)
    assert not audit(again)
    assert again.totals == b.totals
    assert again.counters() == b.counters()
    assert again.batches.members == b.batches.members
    assert again.batches.complete == b.batches.complete
    assert [id_ for id_, _ in take(again, "generate", "other#1")] == [13]


def test_changed_sizes_are_refused() -> None:
    """Ids are made of the group size; another size in the configuration would rename every sample."""
    b = book(1)
    with pytest.raises(ValueError, match="responses_per_prompt"):
        Book.load(small(responses_per_prompt=3), b.snapshot(), 0.0)


def test_restore_reopens_the_same_batches() -> None:
    """What was trained after the checkpoint is ready again, in the same batches, oldest first; the rest stays."""
    b = book(0)
    trained_steps(b, 5)
    before = {row.id: row.batch for row in b.rows.values()}
    reopened = b.restore(2, "learner#2")
    assert reopened == [*range(8, 20)]
    assert b.step == 2
    assert train(b, 3, "learner#2") == [8, 9, 10, 11]
    assert {row.id: row.batch for row in b.rows.values()} == before
    assert not audit(b)


def test_reopened_samples_are_not_stale() -> None:
    """Versions go on after a restore; a sample trained again is as fresh as it was for the restored policy."""
    b = book(0, max_lag=1)
    trained_steps(b, 5)
    b.restore(1, "learner#2")
    b.publish(6, 1, "learner#2")
    for step in range(2, 6):
        assert len(train(b, step, "learner#2")) == 4
        b.publish(5 + step, step, "learner#2")
    assert b.totals[Split.TRAIN][State.TRAINED] == 20


def test_restore_ends_the_leases_of_the_former_learner() -> None:
    """The batch in the dead learner's hands waits at once, and its late answer is stale."""
    b = book(2)
    generate(b)
    score(b)
    leases = take(b, "train", n=1)
    b.restore(0, "learner#2")
    assert b.trained(leases, 1, LEARNER) is Verdict.STALE
    assert len(take(b, "train", "learner#2", n=1)) == 4


def test_a_repeated_restore_has_no_effect() -> None:
    """The resent message of the same learner does not take away what it has got since."""
    b = book(2)
    generate(b)
    score(b)
    b.restore(0, "learner#2")
    leases = take(b, "train", "learner#2", n=1)
    assert b.restore(0, "learner#2") == []
    assert b.trained(leases, 1, "learner#2") is Verdict.OK
    assert b.restore(0, "learner#2") == []
    assert b.step == 1


def test_the_checkpoint_knows_what_the_ledger_missed() -> None:
    """`trained` was lost, the checkpoint was not: its ids are trained, whatever their state, and never again."""
    b = book(6)
    generate(b)
    score(b)
    leases = take(b, "train", n=1)
    assert b.restore(1, "learner#2", {id_: 1 for id_, _ in leases}) == []
    assert all(b.rows[id_].state is State.TRAINED and b.rows[id_].step == 1 for id_, _ in leases)
    assert train(b, 2, "learner#2") == [4, 5, 6, 7]
    assert b.restore(1, "learner#3", {4: 1, 8: 1}) == [5, 6, 7]
    assert not audit(b)
    with pytest.raises(ValueError, match="never issued"):
        b.restore(1, "learner#4", {999: 1})


def test_commit_closes_one_checkpoint_behind() -> None:
    """The last two checkpoints can be restored; what lies before leaves memory and loses its trajectory."""
    b = book(0)
    trained_steps(b, 6)
    assert b.commit(2, LEARNER) == 0
    assert b.commit(2, LEARNER) == 0
    assert b.commit(99, LEARNER) == 0
    assert b.commit(4, LEARNER) == 8
    assert sorted(b.changes.forget) == [*range(8)]
    assert min(b.rows) == 8
    assert b.totals[Split.TRAIN][State.TRAINED] == 24
    assert b.answer("generate", 0, 1, "generate#1", Generated(b"late", 0)) is Verdict.OK
    assert not audit(b)
    again = restarted(b)
    with pytest.raises(RestoreTooOldError, match="cannot restore step 1: samples up to step 2 are closed"):
        again.restore(1, "learner#2")
    assert len(again.restore(2, "learner#2")) == 16
    assert not audit(again)


def test_refused_trajectories_are_kept() -> None:
    """Someone may want to know what killed the workers."""
    b = book(0, max_strikes=1)
    trained_steps(b, 1)
    b.open_group()
    b.open_group()
    generate(b)
    leases = take(b, "score")
    b.give_back("score", *leases[0], "score#1", "out of memory", strike=True)
    for lease in leases[1:]:
        b.answer("score", *lease, "score#1", Scored({"r": float(lease[0])}))
    b.changes.clear()
    trained = b.commit(1, LEARNER)
    assert trained == 2
    assert b.changes.rows[leases[0][0]].closed
    assert leases[0][0] not in b.changes.forget
