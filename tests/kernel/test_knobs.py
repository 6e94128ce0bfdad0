"""The knob table: types and ranges, ownership with epochs, versions, fallbacks, expiry, and replay."""

import math

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from midflight.kernel.knobs import Acquired, Change, KnobEvent, KnobSpec, KnobTable, Value
from midflight.kernel.refusal import Refusal

COEF = KnobSpec("kl.coef", "float", 0.2, unit="", low=0.001, high=10.0, applies="learner")
BATCH = KnobSpec("batch.size", "int", 8, unit="samples", low=1, high=64, applies="learner")
MODE = KnobSpec("on.stale", "choice", "drop", choices=("drop", "train"), applies="ledger")
FLAG = KnobSpec("loss.mask", "bool", True, applies="learner")
FIXED = KnobSpec("model.depth", "int", 4, live=False, applies="learner")


@pytest.fixture
def table() -> KnobTable:
    """Five knobs, nobody holds any."""
    table = KnobTable()
    for spec in (COEF, BATCH, MODE, FLAG, FIXED):
        table.declare(spec)
    return table


def code(answer: object) -> str:
    """The refusal's code, or `ok`."""
    return answer.code if isinstance(answer, Refusal) else "ok"


def epoch_of(answer: object) -> int:
    """The epoch of a successful acquire."""
    assert isinstance(answer, Acquired)
    return answer.epoch


@pytest.mark.parametrize(
    ("spec", "value", "expected"),
    [
        (COEF, 0.5, 0.5),
        (COEF, 1, 1.0),
        (COEF, 0.001, 0.001),
        (COEF, 10, 10.0),
        (COEF, 10.1, "range"),
        (COEF, 0, "range"),
        (COEF, math.nan, "range"),
        (COEF, math.inf, "range"),
        (COEF, 10**400, "range"),
        (COEF, True, "type"),
        (COEF, "0.5", "type"),
        (COEF, None, "type"),
        (BATCH, 64, 64),
        (BATCH, 65, "range"),
        (BATCH, 8.0, "type"),
        (BATCH, False, "type"),
        (KnobSpec("a.b", "int", 0), 2**70, "range"),
        (KnobSpec("a.b", "float", 0), -1e300, -1e300),
        (KnobSpec("a.b", "float", 0), math.inf, "range"),
        (FLAG, False, False),
        (FLAG, 1, "type"),
        (MODE, "train", "train"),
        (MODE, "trian", "range"),
        (MODE, 3, "type"),
    ],
)
def test_check(spec: KnobSpec, value: object, expected: Value) -> None:
    """A value comes back in the knob's own type, or is refused as of wrong type or out of range."""
    checked = spec.check(value)
    got = checked.code if isinstance(checked, Refusal) else checked
    assert (type(got), got) == (type(expected), expected)


def test_refusals_name_the_limits_and_the_nearest(table: KnobTable) -> None:
    """What, where, and what to do instead."""

    def why(name: str, value: object) -> str:
        answer = table.set(name, value, "ann")
        assert isinstance(answer, Refusal)
        return answer.why

    assert why("batch.size", 65) == "batch.size takes an int from 1 up to 64 samples (got 65)"
    assert why("on.stale", "trian") == "on.stale takes one of drop, train (got 'trian') - did you mean 'train'?"
    assert why("kl.ceof", 1.0) == "unknown knob 'kl.ceof' - did you mean 'kl.coef'?"
    assert why("model.depth", 5) == "model.depth can only be set before the run starts, in its topology"
    assert len(why("kl.coef", "x" * 10_000)) < 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"default": 0.0, "low": 0.1},
        {"default": math.nan},
        {"default": 0.5, "low": 1.0, "high": 0.0},
        {"default": 0.5, "low": -math.inf},
        {"kind": "choice", "default": "a"},
        {"default": 0.5, "choices": ("a",)},
    ],
)
def test_senseless_declarations_raise(wrong: dict[str, object]) -> None:
    """A declaration whose default or bounds make no sense is a defect of the service and says so."""
    with pytest.raises(ValueError, match=r"knob a\.b"):
        KnobSpec(**{"name": "a.b", "kind": "float", **wrong})  # type: ignore[arg-type]


def test_one_owner_and_the_refusal_names_it(table: KnobTable) -> None:
    """A second controller and a person are both told who holds the knob."""
    epoch = epoch_of(table.acquire("kl.coef", "kl#1"))
    assert table.acquire("kl.coef", "pid#1") == Refusal("owner", "kl.coef is held by kl#1 (epoch 1)")
    assert table.set("kl.coef", 0.3, "ann") == Refusal("owner", "kl.coef is held by kl#1 (epoch 1)")
    assert code(table.set("kl.coef", 0.3, "pid#1", epoch=epoch)) == "owner"
    change = table.set("kl.coef", 0.3, "kl#1", epoch=epoch, reason="kl 0.02 above 0.01")
    assert isinstance(change, Change)
    assert (change.version, change.old, change.new) == (1, 0.2, 0.3)
    assert table.knobs["kl.coef"].reason == "kl 0.02 above 0.01"


def test_acquire_is_idempotent(table: KnobTable) -> None:
    """A repeated acquire (lost answer) keeps the epoch and records nothing."""
    table.acquire("kl.coef", "kl#1")
    again = table.acquire("kl.coef", "kl#1")
    assert again == Acquired(1, ())


def test_old_epoch_is_refused(table: KnobTable) -> None:
    """What a former holding sends late has no effect, also when the same owner holds the knob again."""
    old = epoch_of(table.acquire("kl.coef", "kl#1"))
    table.release("kl.coef", "kl#1", old)
    assert code(table.set("kl.coef", 0.5, "kl#1", epoch=old)) == "owner"
    new = epoch_of(table.acquire("kl.coef", "kl#1"))
    assert new > old
    assert code(table.set("kl.coef", 0.5, "kl#1", epoch=old)) == "epoch"
    assert code(table.release("kl.coef", "kl#1", old)) == "epoch"
    assert code(table.set("kl.coef", 0.5, "kl#1", epoch=new)) == "ok"


def test_if_version(table: KnobTable) -> None:
    """A person who looked at an older value is told what it is now."""
    assert code(table.set("kl.coef", 0.5, "ann", if_version=0)) == "ok"
    assert table.set("kl.coef", 0.7, "bob", if_version=0) == Refusal(
        "version", "kl.coef is at version 1, not 0: 0.5, set by ann"
    )


def test_a_person_takes_and_gives_back(table: KnobTable) -> None:
    """`take` makes the person the owner; on release the controller holds it again, under a new epoch."""
    before = epoch_of(table.acquire("kl.coef", "kl#1"))
    assert code(table.set("kl.coef", 99.0, "ann", take=True)) == "range"
    assert table.knobs["kl.coef"].owner == "kl#1"
    assert code(table.set("kl.coef", 1.0, "ann", take=True)) == "ok"
    assert code(table.set("kl.coef", 0.3, "kl#1", epoch=before)) == "owner"
    assert code(table.set("kl.coef", 2.0, "ann")) == "ok"
    table.release("kl.coef", "ann", None)
    knob = table.knobs["kl.coef"]
    assert (knob.owner, knob.value, knob.epoch) == ("kl#1", 2.0, before + 2)
    assert code(table.set("kl.coef", 0.3, "kl#1", epoch=knob.epoch)) == "ok"


def test_taken_twice_returns_in_turn(table: KnobTable) -> None:
    """Two people in a row: the knob goes back the way it came, past those who have gone."""
    table.acquire("kl.coef", "kl#1")
    table.set("kl.coef", 1.0, "ann", take=True)
    table.set("kl.coef", 2.0, "bob", take=True)
    table.owner_gone("ann")
    table.release("kl.coef", "bob", None)
    assert table.knobs["kl.coef"].owner == "kl#1"
    table.owner_gone("kl#1")
    assert table.knobs["kl.coef"].owner is None


@pytest.mark.parametrize(("fallback", "value"), [("hold", 0.7), ("default", 0.2), ("former", 0.7)])
def test_fallbacks(table: KnobTable, fallback: str, value: float) -> None:
    """An owner's death leaves the value, or returns it to the default, as it chose when it acquired."""
    epoch = epoch_of(table.acquire("kl.coef", "kl#1", fallback=fallback))  # type: ignore[arg-type]
    table.set("kl.coef", 0.7, "kl#1", epoch=epoch)
    table.owner_gone("kl#1", "died (SIGKILL)")
    knob = table.knobs["kl.coef"]
    assert (knob.owner, knob.value) == (None, value)
    if fallback == "default":
        assert knob.reason == "kl#1 died (SIGKILL): back to the default"


def test_redeclare_keeps_the_value_if_it_can(table: KnobTable) -> None:
    """A restarted learner finds its knobs as they stood; a new range that excludes the value means the default."""
    table.set("kl.coef", 0.7, "ann")
    assert table.declare(COEF) == ()
    wider = KnobSpec("kl.coef", "float", 0.2, low=0.0, high=20.0, applies="learner")
    assert not isinstance(table.declare(wider), Refusal)
    assert (table.knobs["kl.coef"].value, table.knobs["kl.coef"].version) == (0.7, 1)
    table.declare(KnobSpec("kl.coef", "float", 0.2, low=0.0, high=0.5, applies="learner"))
    assert (table.knobs["kl.coef"].value, table.knobs["kl.coef"].version) == (0.2, 2)
    other = KnobSpec("kl.coef", "float", 0.1, applies="rollout")
    assert table.declare(other) == Refusal("owner", "kl.coef is applied by learner already, not by rollout")


def test_applied_tells_the_step(table: KnobTable) -> None:
    """The first report of a version counts; older ones and repeats are no event, unknown ones are refused."""
    table.set("kl.coef", 0.5, "ann")
    table.set("kl.coef", 0.6, "ann")
    assert not isinstance(table.applied("kl.coef", 2, 41), Refusal)
    assert table.applied("kl.coef", 2, 42) == table.applied("kl.coef", 1, 40) == ()
    assert code(table.applied("kl.coef", 3, 43)) == "version"
    assert (table.knobs["kl.coef"].applied_version, table.knobs["kl.coef"].applied_step) == (2, 41)


def test_events_are_plain_and_flat_for_the_stream(table: KnobTable) -> None:
    """An event packs as it is, and its flat part has scalars only."""
    acquired = table.acquire("kl.coef", "kl#1")
    assert isinstance(acquired, Acquired)
    (event,) = acquired.events
    assert msgpack.unpackb(msgpack.packb(event.body)) == event.body
    assert event.flat() == {"knob": "kl.coef", "owner": "kl#1", "epoch": 1, "fallback": "hold"}
    with pytest.raises(ValueError, match=r"knob\.stolen"):
        table.replay(KnobEvent("knob.stolen", {"knob": "kl.coef"}))


OWNERS = st.sampled_from(["kl#1", "kl#2", "ann", "bob"])
KNOBS = st.sampled_from(["kl.coef", "batch.size", "on.stale", "none.such"])
VALUES = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.integers(-5, 80), st.sampled_from(["drop", "train", "x", True])
)


class Steering(RuleBasedStateMachine):
    """Random requests by several owners; the rules of the table hold after each of them."""

    @initialize()
    def begin(self) -> None:
        self.table, self.replayed = KnobTable(), KnobTable()
        self.before: dict[str, tuple[int, int, str | None]] = {}
        for spec in (COEF, BATCH, MODE):
            self.record(self.table.declare(spec))

    def record(self, answer: object) -> None:
        """Replay what a request recorded into the second table."""
        if isinstance(answer, Refusal):
            return
        events = answer.events if isinstance(answer, Acquired | Change) else answer
        assert isinstance(events, tuple)
        for event in events:
            self.replayed.replay(KnobEvent(event.kind, msgpack.unpackb(msgpack.packb(event.body))))

    @rule(name=KNOBS, owner=OWNERS, take=st.booleans(), fallback=st.sampled_from(
        [None, "hold", "default", "former"]))  # fmt: skip
    def acquire(self, name: str, owner: str, take: bool, fallback: None) -> None:
        held = self.table.knobs[name].owner if name in self.table.knobs else "?"
        answer = self.table.acquire(name, owner, fallback=fallback, take=take)
        if isinstance(answer, Acquired):
            assert held in (None, owner) or take
            assert self.table.knobs[name].owner == owner
        self.record(answer)

    @rule(name=KNOBS, owner=OWNERS, value=VALUES, age=st.sampled_from([None, 0, 1]), take=st.booleans(),
          limit=st.sampled_from([None, 1, 5]))  # fmt: skip
    def set_value(self, name: str, owner: str, value: object, age: int | None, take: bool, limit: int | None) -> None:
        knob = self.table.knobs.get(name)
        epoch = None if age is None or knob is None else knob.epoch - age
        held = knob.owner if knob else None
        answer = self.table.set(name, value, owner, epoch=epoch, take=take, for_steps=limit)
        if isinstance(answer, Change):
            assert age != 1
            assert held == owner or (epoch is None and (held is None or take))
        self.record(answer)

    @rule(name=KNOBS, owner=OWNERS)
    def release(self, name: str, owner: str) -> None:
        self.record(self.table.release(name, owner, None))

    @rule(owner=OWNERS)
    def gone(self, owner: str) -> None:
        self.record(self.table.owner_gone(owner))
        for knob in self.table.knobs.values():
            assert owner != knob.owner
            assert owner not in [entry[0] for entry in knob.former]

    @rule(name=KNOBS, version=st.integers(0, 9), step=st.integers(0, 99))
    def applied(self, name: str, version: int, step: int) -> None:
        self.record(self.table.applied(name, version, step))

    @rule(step=st.integers(0, 99))
    def step_done(self, step: int) -> None:
        self.record(self.table.on_step(step))

    @rule(name=KNOBS, version=st.integers(0, 9))
    def unusable(self, name: str, version: int) -> None:
        self.record(self.table.unusable(name, version, "no"))

    @rule(name=st.sampled_from(["kl.coef", "batch.size"]), owner=OWNERS)
    def queue(self, name: str, owner: str) -> None:
        self.record(self.table.queue(name, owner))

    @rule(high=st.sampled_from([1.0, 10.0]))
    def redeclare(self, high: float) -> None:
        self.record(self.table.declare(KnobSpec("kl.coef", "float", 0.2, low=0.001, high=high, applies="learner")))

    @invariant()
    def replay_equals_table(self) -> None:
        if hasattr(self, "table"):
            assert self.replayed.snapshot() == self.table.snapshot()

    @invariant()
    def values_in_range_and_counters_grow(self) -> None:
        for name, knob in self.table.knobs.items() if hasattr(self, "table") else ():
            assert knob.spec.check(knob.value) == knob.value
            version, epoch, owner = self.before.get(name, (0, 0, None))
            assert knob.version >= version
            assert knob.epoch > epoch or (knob.epoch, knob.owner) == (epoch, owner)
            self.before[name] = (knob.version, knob.epoch, knob.owner)
            assert knob.owner is not None or not knob.former
            waiting = [entry[0] for entry in knob.former]
            assert len({knob.owner, *waiting}) == 1 + len(waiting)


TestSteering = Steering.TestCase
TestSteering.settings = settings(max_examples=80, stateful_step_count=30, deadline=None, derandomize=True)
