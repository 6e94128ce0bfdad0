"""The lease protocol, rule by rule: credit, epochs, verdicts, expiry, death, silence."""

import pytest
from support.ledger_tools import LEARNER, book, generate, score, small, take, train

from midflight.services.ledger.balance import audit
from midflight.services.ledger.book import Book
from midflight.services.ledger.row import Generated, Refused, Scored
from midflight.services.ledger.states import LEGAL, OPEN, TERMINAL, State, Verdict
from midflight.services.ledger.table import IllegalMoveError

PAYLOAD = Generated(b"x", 0)


def test_states_table_is_closed() -> None:
    """Every state has its moves; refused is final; open and terminal do not overlap."""
    assert set(LEGAL) == set(State)
    assert not LEGAL[State.REFUSED]
    assert not OPEN & TERMINAL
    assert all(State.REFUSED in LEGAL[state] for state in OPEN)


def test_illegal_move_is_a_defect() -> None:
    """A move outside the table stops the ledger instead of going on wrong."""
    b = book(1)
    with pytest.raises(IllegalMoveError, match="sample 0 cannot move from issued to ready"):
        b.move(b.rows[0], State.READY)


def test_credit_bounds_grants() -> None:
    """No more is granted than wanted, zero and negative wants get nothing, and the want is absolute."""
    b = book(3)
    assert take(b, "generate", n=0) == []
    b.want("generate#1", "generate", -5, [], [], 0, 0.0)
    assert b.match(0.0) == []
    b.want("generate#1", "generate", 5, [], [], 0, 0.0)
    b.want("generate#1", "generate", 2, [], [], 0, 0.0)
    assert sum(len(g.leases) for g in b.match(0.0)) == 2
    assert b.match(0.0) == []


def test_grants_in_flight_count_against_a_repeated_want() -> None:
    """A want sent before its grant arrived does not double the credit."""
    b = book(4)
    first = take(b, "generate", n=3)
    b.want("generate#1", "generate", 3, [], [], 0, 0.0)
    assert b.match(0.0) == []
    b.want("generate#1", "generate", 1, first, [], 0, 0.0)
    assert sum(len(g.leases) for g in b.match(0.0)) == 1


def test_holders_share_and_groups_stay_together() -> None:
    """Two rollouts get whole groups in turn, oldest first."""
    b = book(4)
    b.want("a#1", "generate", 8, [], [], 0, 0.0)
    b.want("b#1", "generate", 8, [], [], 0, 0.0)
    got = {g.holder: [id_ for id_, _ in g.leases] for g in b.match(0.0)}
    assert got == {"a#1": [0, 1, 4, 5], "b#1": [2, 3, 6, 7]}


def test_engine_must_have_a_recent_policy() -> None:
    """No ticket for an engine without a policy or with one older than the slack allows."""
    b = book(2, max_staleness=1)
    b.publish(5, 5, LEARNER)
    for version, expected in ((-1, 0), (3, 0), (4, 4)):
        b.want("generate#1", "generate", 4, [], [], version, 0.0)
        assert sum(len(g.leases) for g in b.match(0.0)) == expected, version


def test_no_policy_no_tickets() -> None:
    """Before the first publication nothing is generated."""
    b = Book(small())
    b.open_group()
    b.want("generate#1", "generate", 4, [], [], 0, 0.0)
    assert b.match(0.0) == []


def test_verdicts() -> None:
    """Ok with effect once, ok without effect when repeated, stale from a former holder, unknown for no sample."""
    b = book(1)
    (id_, epoch), *_ = take(b, "generate")
    assert b.answer("generate", 99, 1, "generate#1", PAYLOAD) is Verdict.UNKNOWN
    assert b.answer("generate", id_, epoch, "other#1", PAYLOAD) is Verdict.STALE
    assert b.answer("generate", id_, epoch, "generate#1", PAYLOAD) is Verdict.OK
    assert b.answer("generate", id_, epoch, "generate#1", Generated(b"other", 7)) is Verdict.OK
    assert b.changes.payloads[id_] == b"x"
    assert take(b, "score") == [(id_, epoch + 1)]
    assert b.answer("generate", id_, epoch, "generate#1", PAYLOAD) is Verdict.OK
    assert b.answer("generate", id_, epoch + 1, "generate#1", PAYLOAD) is Verdict.STALE
    assert b.rows[id_].state is State.SCORING


def test_answer_of_the_wrong_kind() -> None:
    """A score is no answer to a ticket; the lease stands."""
    b = book(1)
    (id_, epoch), *_ = take(b, "generate")
    with pytest.raises(TypeError, match="Scored is no answer to stage generate"):
        b.answer("generate", id_, epoch, "generate#1", Scored({"r": 1.0}))
    assert b.rows[id_].state is State.RUNNING
    assert not audit(b)


def test_expiry_fences_the_former_holder() -> None:
    """After expiry the sample waits under a new epoch, and the late answer has no effect."""
    b = book(1)
    (id_, epoch), *_ = take(b, "generate", n=1)
    assert b.expire(9.9) == 0
    assert b.expire(10.0) == 1
    assert b.rows[id_].state is State.ISSUED
    assert b.answer("generate", id_, epoch, "generate#1", PAYLOAD) is Verdict.STALE
    assert take(b, "generate", "generate#2", n=1, now=10.0) == [(id_, epoch + 2)]
    assert b.answer("generate", id_, epoch, "generate#1", PAYLOAD) is Verdict.STALE


def test_held_extends_and_lost_is_told() -> None:
    """A lease named in `held` lives on; one that is gone is returned so that the worker can drop it."""
    b = book(1)
    (first, second) = take(b, "generate", n=2)
    assert b.want("generate#1", "generate", 0, [first], [], 0, 8.0) == []
    assert b.expire(12.0) == 1
    assert b.want("generate#1", "generate", 0, [first, second], [], 0, 12.0) == [second]
    assert b.answer("generate", *first, "generate#1", PAYLOAD) is Verdict.OK
    assert b.want("generate#1", "generate", 0, [first], [], 0, 12.0) == []


def test_declared_phase_keeps_leases() -> None:
    """A worker that announced a long phase keeps what it holds until its end."""
    b = book(1)
    take(b, "generate")
    b.keep("generate#1", 100.0)
    assert b.expire(99.0) == 0
    assert b.expire(100.0) == 2


def test_death_ends_leases_and_credit_for_ever() -> None:
    """Nothing is granted to the dead, not even for a want that was still on its way."""
    b = book(4)
    take(b, "generate", n=1)
    b.want("generate#1", "generate", 4, [], [], 0, 0.0)
    assert b.holder_died("generate#1") == 1
    b.want("generate#1", "generate", 4, [], [], 0, 0.0)
    assert b.match(0.0) == []
    assert len(take(b, "generate", "generate#2", n=8)) == 8


def test_credit_fades() -> None:
    """A worker that fell silent gets no new work; the ledger's own standstill is not silence."""
    b = book(1)
    b.want("generate#1", "generate", 4, [], [], 0, 0.0)
    assert b.match(2.1) == []
    b.time_back(1.0)
    assert len(b.match(2.1)) == 1


def test_standstill_of_the_ledger_costs_nobody_a_lease() -> None:
    """Deadlines move on by the gap."""
    b = book(1)
    take(b, "generate")
    b.time_back(30.0)
    assert b.expire(39.9) == 0
    assert b.expire(40.0) == 2


def test_unsent_grant_returns_at_once() -> None:
    """A failed send gives the samples back without a strike and voids the credit."""
    b = book(1)
    b.want("generate#1", "generate", 8, [], [], 0, 0.0)
    (grant,) = b.match(0.0)
    b.unsent(grant)
    assert all(b.rows[id_].state is State.ISSUED and not b.rows[id_].strikes for id_, _ in grant.leases)
    assert b.match(0.0) == []
    assert not audit(b)


def test_refused_prompt_and_refused_sample() -> None:
    """A bad row ends with its reason, and a sample a worker calls impossible does too."""
    b = book(0)
    assert b.open_group(refused="data.jsonl row 3: no field 'answer'") == 0
    b.open_group()
    assert [b.rows[i].why for i in (0, 1)] == ["data.jsonl row 3: no field 'answer'"] * 2
    (id_, epoch), *_ = take(b, "generate")
    assert b.answer("generate", id_, epoch, "generate#1", Refused("too long")) is Verdict.OK
    assert b.answer("generate", id_, epoch, "generate#1", Refused("too long")) is Verdict.OK
    assert b.rows[id_].state is State.REFUSED
    assert not audit(b)


def test_trained_is_all_or_nothing() -> None:
    """One lost lease makes the whole answer stale and leaves every sample as it was."""
    b = book(2)
    generate(b)
    score(b)
    leases = take(b, "train", n=1)
    wrong = [*leases[:-1], (leases[-1][0], leases[-1][1] - 1)]
    assert b.trained(wrong, 1, LEARNER) is Verdict.STALE
    assert b.trained([*leases, (77, 1)], 1, LEARNER) is Verdict.UNKNOWN
    assert all(b.rows[id_].state is State.LEASED for id_, _ in leases)
    assert b.trained(leases, 1, LEARNER) is Verdict.OK
    assert b.trained(leases, 1, LEARNER) is Verdict.OK
    assert b.step == 1


def test_learner_may_refuse_one_sample_of_a_batch() -> None:
    """The sample leaves the batch, the others are trained."""
    b = book(2)
    generate(b)
    score(b)
    leases = take(b, "train", n=1)
    assert b.answer("train", *leases[0], LEARNER, Refused("log-probs not finite")) is Verdict.OK
    assert b.trained(leases[1:], 1, LEARNER) is Verdict.OK
    assert not audit(b)
    assert b.rows[leases[0][0]].state is State.REFUSED


def test_former_learner_is_fenced() -> None:
    """Once another learner has restored, the old one's versions and commits count for nothing."""
    b = book(2)
    generate(b)
    score(b)
    train(b, 1)
    b.restore(1, "learner#2")
    assert not b.publish(9, 9, LEARNER)
    assert b.commit(1, LEARNER) == 0
    assert b.committed == 0
    assert b.publish(1, 1, "learner#2")
    assert not b.publish(1, 1, "learner#2")
