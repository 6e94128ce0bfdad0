"""Knobs over time: changes that end, values that cannot be used, knobs that go and come again, and who waits."""

import msgpack
import pytest

from midflight.kernel.knobs import Acquired, KnobSpec, KnobTable
from midflight.kernel.refusal import Refusal


@pytest.fixture
def table() -> KnobTable:
    """One knob that nobody holds."""
    table = KnobTable()
    table.declare(KnobSpec("kl.coef", "float", 0.2, low=0.001, high=10.0, applies="learner"))
    return table


def code(answer: object) -> str:
    """The refusal's code, or `ok`."""
    return answer.code if isinstance(answer, Refusal) else "ok"


def epoch_of(answer: object) -> int:
    """The epoch of a successful acquire."""
    assert isinstance(answer, Acquired)
    return answer.epoch


def test_whoever_asked_in_vain_waits_its_turn(table: KnobTable) -> None:
    """A restarted controller finds its knob with a rival, and has it when that one goes: never without an owner."""
    table.acquire("kl.coef", "bang#7")
    assert code(table.acquire("kl.coef", "kl#2")) == "owner"
    table.queue("kl.coef", "kl#2")
    assert table.queue("kl.coef", "kl#2") == ()
    taken = table.acquire("kl.coef", "pid#1", take=True)
    assert isinstance(taken, Acquired)
    assert [entry[0] for entry in table.knobs["kl.coef"].former] == ["kl#2", "bang#7"]
    events = table.owner_gone("pid#1")
    assert [event.kind for event in events] == ["knob.granted"]
    assert table.knobs["kl.coef"].owner == "bang#7"
    assert table.held_by("bang#7") == ["kl.coef"]


def test_a_change_for_a_while(table: KnobTable) -> None:
    """It counts from the step at which it took effect; afterwards the value, or the owner, is as before."""
    table.acquire("kl.coef", "kl#1")
    table.set("kl.coef", 0.5, "ann", take=True, for_steps=3)
    assert table.on_step(40) == ()
    table.applied("kl.coef", 1, 11)
    assert table.knobs["kl.coef"].until_step == 14
    assert table.on_step(12) == ()
    events = table.on_step(13)
    assert [event.kind for event in events] == ["knob.set", "knob.granted"]
    knob = table.knobs["kl.coef"]
    assert (knob.value, knob.owner, knob.author, knob.reason) == (0.2, "kl#1", "kernel", "3 steps are over")
    assert table.on_step(14) == ()


def test_two_changes_for_a_while_end_at_the_first_ones_beginning(table: KnobTable) -> None:
    """Not at the value of the first, which was to hold for a while only."""
    table.set("kl.coef", 0.5, "ann", for_steps=3)
    table.applied("kl.coef", 1, 11)
    table.set("kl.coef", 0.6, "ann", for_steps=3)
    table.applied("kl.coef", 2, 12)
    assert table.on_step(13) == ()
    table.on_step(14)
    assert table.knobs["kl.coef"].value == 0.2


def test_a_while_begins_with_the_newest_step_when_none_is_told(table: KnobTable) -> None:
    """A learner that is still loading does not know its step; its value holds from the next one."""
    table.on_step(40)
    table.set("kl.coef", 0.5, "ann", for_steps=3)
    table.applied("kl.coef", 1, 0)
    assert table.knobs["kl.coef"].until_step == 44
    assert table.on_step(42) == ()
    assert table.on_step(43) != ()


def test_another_implementation_ends_the_while(table: KnobTable) -> None:
    """What it brought is not undone by the end of what was before it."""
    table.set("kl.coef", 0.5, "ann", for_steps=3)
    table.applied("kl.coef", 1, 11)
    table.declare(KnobSpec("kl.coef", "float", 0.9, low=0.0, high=10.0, applies="learner"), afresh=True)
    assert table.on_step(99) == ()
    assert table.knobs["kl.coef"].value == 0.9


def test_a_newer_change_ends_the_while(table: KnobTable) -> None:
    """Only the newest change counts."""
    table.set("kl.coef", 0.5, "ann", for_steps=3)
    table.applied("kl.coef", 1, 11)
    table.set("kl.coef", 0.6, "bob")
    assert table.on_step(99) == ()
    assert table.knobs["kl.coef"].value == 0.6


def test_a_value_that_cannot_be_used_is_taken_back_once(table: KnobTable) -> None:
    """The service refuses it: the one before is back; if that is refused too, there is no to and fro."""
    table.set("kl.coef", 0.5, "ann")
    table.set("kl.coef", 0.6, "ann")
    assert table.unusable("kl.coef", 1, "too late") == ()
    assert [event.kind for event in table.unusable("kl.coef", 2, "no")] == ["knob.set"]
    knob = table.knobs["kl.coef"]
    assert (knob.value, knob.author, knob.reason) == (0.5, "kernel", "0.6 cannot be used: no")
    assert table.unusable("kl.coef", 3, "no") == ()


def test_knobs_go_with_whoever_applied_them(table: KnobTable) -> None:
    """An attached controller's parameters leave with it; what remains keeps its value."""
    table.declare(KnobSpec("bang.gain", "float", 1.0, applies="bang"))
    table.declare(KnobSpec("bang.pause", "int", 3, applies="bang"))
    table.undeclare("bang", keep=["bang.gain"])
    assert [name for name in table.knobs if name.startswith("bang")] == ["bang.gain"]
    table.set("bang.gain", 2.0, "ann")
    table.acquire("bang.gain", "kl#1")
    table.undeclare("bang")
    assert "bang.gain" not in table.knobs
    assert "kl.coef" in table.knobs


def test_versions_never_go_back(table: KnobTable) -> None:
    """A knob that comes again goes on counting: whoever knows its old versions must not take a new one for old."""
    gain = KnobSpec("bang.gain", "float", 1.0, applies="bang")
    table.declare(gain)
    table.set("bang.gain", 2.0, "ann")
    epoch = epoch_of(table.acquire("bang.gain", "kl#1"))
    table.undeclare("bang")
    copy = KnobTable()
    copy.restore(msgpack.unpackb(msgpack.packb(table.snapshot())))
    copy.declare(gain)
    knob = copy.knobs["bang.gain"]
    assert (knob.value, knob.version, knob.owner) == (1.0, 2, None)
    assert epoch_of(copy.acquire("bang.gain", "kl#1")) > epoch


def test_a_changed_default_counts_where_nobody_steers(table: KnobTable) -> None:
    """A run goes on with another configuration: its value is in force, unless a controller moves the knob."""
    table.set("kl.coef", 0.7, "ann")
    table.declare(KnobSpec("kl.coef", "float", 0.1, low=0.0, high=10.0, applies="learner"))
    assert (table.knobs["kl.coef"].value, table.knobs["kl.coef"].version) == (0.1, 2)
    table.acquire("kl.coef", "kl#1")
    table.declare(KnobSpec("kl.coef", "float", 0.3, low=0.0, high=10.0, applies="learner"))
    assert table.knobs["kl.coef"].value == 0.1
    table.declare(KnobSpec("kl.coef", "float", 0.3, low=0.0, high=10.0, applies="learner"), afresh=True)
    assert table.knobs["kl.coef"].value == 0.3
