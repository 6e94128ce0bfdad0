"""Samples that end their workers: four begun tries, the last two alone, and nobody else suffers."""

from support.ledger_tools import book, generate, take

from midflight.services.ledger.balance import audit
from midflight.services.ledger.book import Book
from midflight.services.ledger.row import Generated, Scored
from midflight.services.ledger.states import State, Verdict


def begin(b: Book, holder: str, leases: list[tuple[int, int]]) -> None:
    b.want(holder, "generate", 0, leases, leases, 0, 0.0)


def test_exactly_the_poison_is_refused_and_from_the_third_try_alone() -> None:
    """Four samples share a worker with the poison; it kills its worker whenever it is begun."""
    poison, tries = 2, 0
    b = book(2)
    for generation in range(1, 40):
        holder = f"generate#{generation}"
        leases = take(b, "generate", holder, n=8)
        if not leases:
            break
        begin(b, holder, leases)
        if poison not in dict(leases):
            for id_, epoch in leases:
                assert b.answer("generate", id_, epoch, holder, Generated(b"x", 0)) is Verdict.OK
            continue
        tries += 1
        assert tries <= 2 or len(leases) == 1, "a third try must be alone"
        b.holder_died(holder)
    states = {row.id: row.state for row in b.rows.values()}
    assert tries == 4
    assert states == {0: State.GENERATED, 1: State.GENERATED, 2: State.REFUSED, 3: State.GENERATED}
    assert b.rows[poison].why.startswith("poison: 4 begun tries")
    assert not audit(b)


def test_only_begun_tries_count() -> None:
    """Dying with work not begun, being given back, or silence before the beginning earn no strike."""
    b = book(1)
    for generation in range(10):
        holder = f"generate#{generation}"
        (first, second) = take(b, "generate", holder, n=2)
        begin(b, holder, [first])
        b.give_back("generate", *first, holder, "worker pool could not start")
        b.holder_died(holder)
        assert second[0] == 1
    assert [row.strikes for row in b.rows.values()] == [0, 0]


def test_a_lease_can_be_given_back_with_a_strike() -> None:
    """A worker that survives its sample's program (a memory limit, say) reports the try itself."""
    b = book(1)
    for _ in range(4):
        ((id_, epoch),) = take(b, "generate", n=1)
        assert id_ == 0 or b.rows[0].strikes >= 2
        if id_ == 1:
            b.answer("generate", id_, epoch, "generate#1", Generated(b"x", 0))
            ((id_, epoch),) = take(b, "generate", n=1)
        b.give_back("generate", id_, epoch, "generate#1", "killed by its memory limit", strike=True)
    assert b.rows[0].state is State.REFUSED
    assert "memory limit" in b.rows[0].why


def test_a_service_that_stays_away_does_not_give_back_for_ever() -> None:
    """Four failed tries are not enough, nor are ten minutes: it takes both, and the reason is kept."""
    b = book(1)
    generate(b)
    for number, now in enumerate((0.0, 8.0, 16.0, 24.0, 599.0, 600.0), 1):
        (lease, other) = take(b, "score", n=2, now=now)
        b.give_back("score", *lease, "score#1", "no route to the sandbox", failed_at=now)
        assert (b.rows[0].state is State.REFUSED) == (number == 6)
        b.give_back("score", *other, "score#1", "the reward queue is full")
        assert b.rows[0].strikes == 0
    assert b.rows[0].why == "no verdict: 6 tries in 600 s failed, at last: no route to the sandbox"
    assert b.rows[1].state is State.GENERATED
    assert not audit(b)


def test_failures_are_forgiven_by_success_and_by_the_ledgers_own_absence() -> None:
    """A sample that waited long for its second try, one that was scored, and a ledger that stood still."""
    b = book(1, max_strikes=2)
    generate(b)
    (lease, other) = take(b, "score", n=2)
    b.give_back("score", *lease, "score#1", "away", failed_at=0.0)
    b.time_back(590.0)
    ((id_, epoch),) = take(b, "score", n=1, now=600.0)
    b.give_back("score", id_, epoch, "score#1", "away", failed_at=600.0)
    assert b.rows[id_].state is State.GENERATED
    ((id_, epoch),) = take(b, "score", n=1, now=700.0)
    b.answer("score", id_, epoch, "score#1", Scored({"reward": 1.0}))
    b.answer("score", *other, "score#1", Scored({"reward": 1.0}))
    assert [row.state for row in b.rows.values()] == [State.READY] * 2
    assert not len(b.setbacks)


def test_strikes_are_forgiven_by_success() -> None:
    """Strikes belong to a stage: what was generated at last is not suspect to the reward server."""
    b = book(1)
    for generation in range(3):
        holder = f"generate#{generation}"
        leases = take(b, "generate", holder, n=1)
        begin(b, holder, leases)
        b.holder_died(holder)
    ((id_, epoch),) = take(b, "generate", "generate#9", n=1)
    b.answer("generate", id_, epoch, "generate#9", Generated(b"x", 0))
    assert b.rows[id_].strikes == 0


def test_a_busy_worker_is_drained_for_a_suspect() -> None:
    """While a suspect waits, one worker gets nothing new; it gets the suspect when it is empty, and nothing beside."""
    b = book(4)
    for generation in (1, 2):
        holder = f"generate#{generation}"
        leases = take(b, "generate", holder, n=1)
        begin(b, holder, leases)
        if generation == 2:
            ((id_, epoch),) = take_other(b)
        b.holder_died(holder)
    assert b.rows[0].strikes == 2
    assert take(b, "generate", "generate#3", n=7) == []
    b.answer("generate", id_, epoch, "generate#3", Generated(b"x", 0))
    assert [i for i, _ in take(b, "generate", "generate#3", n=7)] == [0]
    assert take(b, "generate", "generate#3", n=7) == []
    assert len(take(b, "generate", "generate#4", n=7)) == 6


def take_other(b: Book) -> list[tuple[int, int]]:
    """Another worker has one ordinary sample."""
    return take(b, "generate", "generate#3", n=1)
