"""Evaluation rounds beside the training."""

from support.ledger_tools import LEARNER, book, generate, score, take

from midflight.services.ledger.balance import audit
from midflight.services.ledger.evaluation import EvalResult, due
from midflight.services.ledger.row import EVAL_BASE, Generated, Refused, Scored
from midflight.services.ledger.states import Split, State


def test_due() -> None:
    """The first version starts a round, then every K versions; 0 means never."""
    assert due(0, None, 5)
    assert not due(4, 0, 5)
    assert due(5, 0, 5)
    assert not due(100, None, 0)


def test_a_round_measures_its_version() -> None:
    """Means by objective over the scored, refused apart; ids lie in their own range and outside admission."""
    b = book(0, eval_every=2, eval_samples=4, max_staleness=0)
    assert sorted(b.rows) == [EVAL_BASE + m for m in range(4)]
    assert b.room()
    leases = take(b, "generate")
    b.answer("generate", *leases[3], "generate#1", Refused("too long"))
    for lease in leases[:3]:
        b.answer("generate", *lease, "generate#1", Generated(b"x", 0))
    score(b, {EVAL_BASE: 1.0, EVAL_BASE + 1: 0.0, EVAL_BASE + 2: 0.5})
    assert b.changes.results == [EvalResult(0, {"reward": 0.5}, 3, 1)]
    assert b.totals[Split.EVAL][State.EVALUATED] == 3
    assert not audit(b)


def test_evaluation_goes_first_and_needs_the_new_policy() -> None:
    """An engine still on an older version gets training tickets, not the round."""
    b = book(2, eval_every=1, eval_samples=2)
    generate(b)
    score(b)
    b.publish(1, 1, LEARNER)
    b.open_group()
    b.want("old#1", "generate", 1, [], [], 0, 0.0)
    b.want("new#1", "generate", 2, [], [], 1, 0.0)
    got = {g.holder: [id_ for id_, _ in g.leases] for g in b.match(0.0)}
    assert got == {"old#1": [4], "new#1": [EVAL_BASE + 2, EVAL_BASE + 3]}


def test_one_round_at_a_time() -> None:
    """A round that falls due meanwhile is taken at the newest version when the open one ends."""
    b = book(0, eval_every=1, eval_samples=2)
    for version in (1, 2, 3):
        b.publish(version, version, LEARNER)
    assert b.opened[Split.EVAL] == 2
    generate(b, version=3)
    score(b)
    assert b.opened[Split.EVAL] == 4
    assert b.evaluating == 3
    generate(b, version=3)
    score(b)
    assert [r.version for r in b.changes.results] == [0, 3]
    assert b.evaluating == -1


def test_a_mean_is_over_the_samples_that_name_the_objective() -> None:
    """As the learner's means are; and a refusal is told by its reason."""
    b = book(0, eval_every=2, eval_samples=4, max_staleness=0)
    leases = take(b, "generate")
    b.answer("generate", *leases[3], "generate#1", Refused("too long"))
    for lease in leases[:3]:
        b.answer("generate", *lease, "generate#1", Generated(b"x", 0))
    for number, lease in enumerate(take(b, "score")):
        rewards = {"exact": 1.0} if number else {"exact": 0.0, "style": 2.0}
        b.answer("score", *lease, "score#1", Scored(rewards))
    (result,) = b.changes.results
    assert result.rewards == {"exact": 2 / 3, "style": 2.0}
    assert result.why == "too long"
