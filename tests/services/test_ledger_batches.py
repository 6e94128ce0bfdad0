"""Admission, group completion, filters and batches."""

import heapq
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.ledger_tools import LEARNER, book, generate, score, small, take, train

from midflight.services.ledger import admission, grants
from midflight.services.ledger.balance import audit
from midflight.services.ledger.book import Book
from midflight.services.ledger.row import Generated, Refused, Scored
from midflight.services.ledger.states import OPEN, Split, State, Verdict


@given(st.integers(0, 4), st.integers(1, 5), st.integers(1, 8))
def test_admission_never_exceeds_the_cap(staleness: int, prompts: int, size: int) -> None:
    """Open samples stay within (max_staleness + 1) batches, and reach it."""
    b = Book(small(prompts_per_rollout=prompts, responses_per_prompt=size, max_staleness=staleness))
    while b.room():
        b.open_group()
    opened = sum(b.totals[Split.TRAIN][s] for s in OPEN)
    assert opened == (staleness + 1) * prompts * size


def test_admission_opens_again_when_a_batch_is_trained() -> None:
    """Trained and filtered samples leave the cap; leased ones do not."""
    b = book(2, max_staleness=0)
    assert not b.room()
    generate(b)
    score(b)
    leases = take(b, "train", n=1)
    assert not b.room()
    b.trained(leases, 1, LEARNER)
    assert b.room()


def test_bytes_bound_admission_but_one_batch_always_fits() -> None:
    """Stored plus expected bytes stay within the limit, except that a batch larger than it must not block the run."""
    b = book(2, max_ready_bytes=100, max_staleness=9)
    generate(b, size=20)
    assert b.stored == 80
    assert not b.room()
    huge = book(0, max_ready_bytes=1, max_staleness=9)
    huge.open_group()
    generate(huge, size=1000)
    assert huge.room()
    huge.open_group()
    assert not huge.room()


@pytest.mark.parametrize(
    ("version", "newest", "steps", "expected"),
    [
        (5, 7, {5: 5, 6: 6, 7: 7}, 2),
        (7, 7, {7: 7}, 0),
        (2, 7, {5: 5, 6: 6, 7: 7}, 5),
        (6, 8, {4: 4, 5: 5, 6: 6, 7: 7, 8: 4}, 0),  # restored to step 4: version 8 is older than version 6
        (4, 9, {4: 4, 5: 5, 8: 4, 9: 5}, 1),
        (3, 3, {}, 0),
    ],
)
def test_lag_is_counted_in_steps(version: int, newest: int, steps: dict[int, int], expected: int) -> None:
    """One version a step gives the difference of versions; after a restore only steps tell the age."""
    assert admission.lag(version, newest, steps) == expected


def test_a_learner_gets_no_more_batches_than_it_can_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many it asks for: its `want` would be refused, and its leases would end. One always fits."""
    monkeypatch.setattr(grants, "MOST_HELD", 11)
    b = book(8, max_staleness=9)
    generate(b)
    score(b)
    leases = take(b, "train", n=9)
    assert len(leases) == 8
    assert take(b, "train", n=9) == []
    assert b.trained(leases[:4], 1, LEARNER) is Verdict.OK
    assert len(take(b, "train", n=9)) == 4
    monkeypatch.setattr(grants, "MOST_HELD", 3)
    assert take(b, "train", n=9) == []
    assert b.trained(leases[4:], 2, LEARNER) is Verdict.OK
    b.trained([(id_, b.rows[id_].epoch) for id_ in b.leases["train"].of(LEARNER)], 3, LEARNER)
    assert len(take(b, "train", n=9)) == 4


def test_batches_are_whole_groups_oldest_first() -> None:
    """The group that is complete first does not overtake an older one in the batch after it."""
    b = book(4)
    generate(b)
    leases = dict(take(b, "score"))
    for id_ in (6, 7, 2, 3, 4, 5):
        b.answer("score", id_, leases[id_], "score#1", Scored({"r": float(id_)}))
    assert [id_ for id_, _ in take(b, "train", n=1)] == [2, 3, 4, 5]
    assert take(b, "train", n=1) == []
    for id_ in (0, 1):
        b.answer("score", id_, leases[id_], "score#1", Scored({"r": float(id_)}))
    assert [id_ for id_, _ in take(b, "train", n=1)] == [0, 1, 6, 7]


def test_an_expired_batch_returns_whole_and_first() -> None:
    """The returned batch keeps its samples and goes out before any younger one, under new epochs."""
    b = book(4)
    generate(b)
    score(b)
    first = take(b, "train", n=1)
    assert b.expire(60.0) == 1
    again = take(b, "train", n=1, now=60.0)
    assert [id_ for id_, _ in again] == [id_ for id_, _ in first] == [0, 1, 2, 3]
    assert all(new > old for (_, new), (_, old) in zip(again, first, strict=True))
    assert not audit(b)


def test_several_batches_for_credit_in_batches() -> None:
    """The learner's credit counts batches, and batches in flight count against it."""
    b = book(6)
    generate(b)
    score(b)
    b.want(LEARNER, "train", 2, [], [], 0, 0.0)
    assert [len(g.leases) for g in b.match(0.0)] == [4, 4]
    b.want(LEARNER, "train", 2, [], [], 0, 0.0)
    assert b.match(0.0) == []


def test_zero_variance_groups_are_filtered() -> None:
    """A group whose members all have the same rewards has no advantage; it is filtered when that is asked for."""
    b = book(3, filter_zero_variance=True)
    generate(b)
    score(b, {0: 1.0, 1: 1.0, 2: 0.0, 3: 1.0, 4: 0.5, 5: 0.25})
    assert [b.rows[i].state for i in (0, 1)] == [State.FILTERED] * 2
    assert b.rows[0].why == "zero variance: every member has the same rewards"
    assert train(b, 1) == [2, 3, 4, 5]
    kept = book(1, filter_zero_variance=False)
    generate(kept)
    score(kept, {0: 1.0, 1: 1.0})
    assert kept.rows[0].state is State.READY


def test_an_incomplete_group_is_filtered() -> None:
    """With fewer than two usable members no baseline can be taken; single samples need none."""
    b = book(1)
    leases = take(b, "generate")
    b.answer("generate", *leases[0], "generate#1", Refused("too long"))
    b.give_back("generate", *leases[1], "generate#1", "again")
    generate(b)
    score(b)
    assert b.rows[1].why == "group incomplete: 1 of 2 usable"
    assert b.stored == 0
    alone = book(2, responses_per_prompt=1)
    generate(alone)
    score(alone)
    assert len(take(alone, "train", n=1)) == 2


def test_stale_samples_are_dropped_or_trained_as_declared() -> None:
    """The maximum lag is judged when the batch is formed."""
    for on_stale, expected in (("drop", State.FILTERED), ("train", State.LEASED)):
        b = book(2, max_lag=1, on_stale=on_stale)
        generate(b, version=0)
        score(b)
        b.publish(1, 1, LEARNER)
        b.publish(2, 2, LEARNER)
        take(b, "train", n=1)
        assert {row.state for row in b.rows.values()} == {expected}
        if on_stale == "drop":
            assert b.rows[0].why == "stale: lag 2 > 1"
        assert not audit(b)


def test_the_last_batch_is_what_is_left() -> None:
    """Without further prompts a smaller batch is formed once nothing is on its way, and the run is finished."""
    b = book(3)
    b.over = True
    generate(b)
    leases = take(b, "score")
    for lease in leases[:-1]:
        b.answer("score", *lease, "score#1", Scored({"r": float(lease[0])}))
    assert train(b, 1) == [0, 1, 2, 3]
    assert train(b, 2) == []
    assert not b.finished
    b.answer("score", *leases[-1], "score#1", Scored({"r": 0.0}))
    assert train(b, 2) == [4, 5]
    assert b.finished
    assert not audit(b)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_staleness_under_stragglers(staleness: int) -> None:
    """T24: with lognormal (sigma 1) generation times the lag never exceeds max_lag, and its mean max_staleness.

    One engine of 32 slots always has the newest policy; a sample takes exp(N(0, 1)) s, an optimizer step 1 s.
    """
    b = book(0, prompts_per_rollout=4, max_staleness=staleness, max_lag=staleness + 1)
    rng = random.Random(3)
    running: list[tuple[float, int, int, int]] = []
    lags: list[int] = []
    now, free_at = 0.0, 0.0
    while b.step < 200:
        while b.room():
            b.open_group()
        for id_, epoch in take(b, "generate", n=32 - len(running), now=now):
            heapq.heappush(running, (now + rng.lognormvariate(0, 1), id_, epoch, b.newest or 0))
        leases = take(b, "train", n=1, now=now) if now >= free_at else []
        if leases:
            lags += [b.lag(b.rows[id_]) for id_, _ in leases]
            b.trained(leases, b.step + 1, LEARNER)
            b.publish(b.step, b.step, LEARNER)
            free_at = now + 1.0
        elif running:
            now, id_, epoch, version = heapq.heappop(running)
            b.want("generate#1", "generate", 0, [(i, e) for _, i, e, _ in running], [], b.newest or 0, now)
            b.answer("generate", id_, epoch, "generate#1", Generated(b"x", version))
            score(b, now=now)
        else:
            now = free_at
    assert max(lags) <= staleness + 1
    assert fmean(lags) <= staleness
    assert not audit(b)
