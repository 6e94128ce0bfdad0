"""What must hold in the ledger's world at every step, and at its end."""

from typing import TYPE_CHECKING

from midflight.services.ledger.balance import audit, balance
from midflight.services.ledger.row import EVAL_BASE, Row
from midflight.services.ledger.states import STAGE_OF_LEASE, TERMINAL, Split, State

if TYPE_CHECKING:
    from support.ledger_world import World


DONE = (State.READY, State.LEASED, State.TRAINED, State.EVALUATED)


def check(world: "World") -> None:
    """Assert every invariant of the ledger."""
    assert not (faults := audit(world.book)), faults
    world.promised = {k: v for k, v in world.promised.items() if v[0] > world.now}
    for row in world.book.rows.values():
        assert row.epoch >= world.epochs.get(row.id, 0), f"the epoch of sample {row.id} went back"
        world.epochs[row.id] = row.epoch
        if row.state in STAGE_OF_LEASE and row.strikes >= world.rules.solo_after and row.solo:
            held = world.book.leases[STAGE_OF_LEASE[row.state].name].of(row.holder or "")
            assert list(held) == [row.id], f"suspect {row.id} is not alone at {row.holder}"
        if row.state is State.REFUSED and row.why.startswith("poison"):
            assert world.begun_tries.get(row.id, 0) >= world.rules.max_strikes or row.split is Split.EVAL
        was = world.final.get(row.id)
        assert was is None or was is row.state or world.rules.deterministic, f"{row.id} left {was}"
        if row.state in TERMINAL:
            world.final[row.id] = row.state
    for (id_, epoch), (_, name) in world.promised.items():
        row_ = world.book.rows.get(id_)
        if row_ is None or row_.epoch != epoch or row_.state not in STAGE_OF_LEASE:
            accepted = () if row_ is None else (*row_.done, *row_.past)
            answered = row_ is None or epoch in accepted or name not in world.workers or world.rules.deterministic
            answered = answered or (row_ is not None and row_.split is Split.TRAIN and row_.batch is not None)
            assert answered, f"{name} kept asking for {id_}@{epoch} and lost it"


def settle(world: "World") -> None:
    """The book, the file and the learner's weights tell the same story."""
    learner = world.workers[world.slots[-1]]
    trained = {row.id: row.step for row in world.book.rows.values() if row.state is State.TRAINED}
    held = {i: s for i, s in learner.history.items() if i in trained}
    assert held == trained, f"the ledger says trained {trained}, the weights hold {held}"
    closed = world.book.closed[Split.TRAIN][State.TRAINED]
    assert len(learner.history) == len(trained) + closed, "the weights hold samples the ledger has elsewhere"
    assert world.book.opened[Split.TRAIN] == world.groups * world.rules.responses_per_prompt
    stored = world.store.load()
    assert not balance(stored).problems()
    rows = sorted(world.book.rows.values(), key=lambda row: row.id)
    assert [story(row) for row in stored.rows] == [story(row) for row in rows]
    for row in rows:
        if row.bytes and row.state is not State.FILTERED:
            whole = b"t%d" % row.id + b"sg" * row.turn
            kept, done = world.store.payload(row.id), row.state in DONE
            assert kept == whole or (not done and kept == whole[:-1]), f"sample {row.id}: {kept!r}"
            assert not done or row.turn + 1 == world.turns_of(row.id), f"sample {row.id} ended at turn {row.turn}"
    assert all(row.id < EVAL_BASE or row.state in TERMINAL for row in rows) or world.book.evaluating >= 0


def story(row: Row) -> tuple[object, ...]:
    """What the file and the book must agree on."""
    return row.id, row.state, row.epoch, row.done, row.past, row.step, row.batch, row.rewards
