"""All interleavings of the lease protocol, and the mutants that must not survive them."""

import math
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from support.ledger_promises import check
from support.ledger_walk import MEMORY, walk
from support.ledger_world import World

from midflight.services.ledger.book import Book
from midflight.services.ledger.changes import Snapshot
from midflight.services.ledger.row import Row
from midflight.services.ledger.rules import Rules
from midflight.services.ledger.states import Stage, StageName, Verdict
from midflight.services.ledger.table import IllegalMoveError, Lease

PICK = st.integers(0, 999)
SLOT = st.integers(0, 3)
GENERATOR = st.integers(0, 1)


class Machine(RuleBasedStateMachine):
    """Hypothesis chooses who speaks, what is delivered, lost, repeated or late, who dies, and when time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="ledger-", dir=MEMORY)
        self.world: World | None = None

    @initialize(
        prompts=st.integers(1, 2),
        responses=st.integers(1, 3),
        staleness=st.integers(0, 2),
        deterministic=st.booleans(),
        max_lag=st.sampled_from([None, 2]),
        variance=st.booleans(),
        eval_every=st.sampled_from([0, 2]),
        poison=st.booleans(),
        ends=st.booleans(),
        turns=st.integers(1, 3),
    )
    def start(
        self,
        prompts: int,
        responses: int,
        staleness: int,
        deterministic: bool,
        max_lag: int | None,
        variance: bool,
        eval_every: int,
        poison: bool,
        ends: bool,
        turns: int,
    ) -> None:
        rules = Rules(
            prompts_per_rollout=prompts,
            responses_per_prompt=responses,
            max_staleness=0 if deterministic else staleness,
            deterministic=deterministic,
            max_lag=max_lag,
            filter_zero_variance=variance,
            lease_s={"generate": 10.0, "score": 10.0, "train": 30.0},
            eval_every=eval_every,
            eval_samples=eval_every,
        )
        bad = frozenset({3}) if poison and not deterministic else frozenset[int]()
        path = Path(self.folder) / "ledger.sqlite"
        self.world = World(path, rules, groups=7, poison=bad, ends=ends, turns=turns)

    @property
    def at(self) -> World:
        assert self.world is not None
        return self.world

    @rule(slot=SLOT)
    def speak(self, slot: int) -> None:
        self.at.speak(slot)

    @rule(slot=GENERATOR)
    def load_weights(self, slot: int) -> None:
        self.at.load_weights(slot)

    @rule(slot=SLOT, pick=PICK)
    def begin(self, slot: int, pick: int) -> None:
        self.at.begin(slot, pick)

    @rule(slot=SLOT, pick=PICK)
    def finish(self, slot: int, pick: int) -> None:
        self.at.finish(slot, pick)

    @rule(pick=PICK)
    def deliver(self, pick: int) -> None:
        self.at.deliver(pick)

    @rule()
    def copy(self) -> None:
        self.at.copy()

    @rule()
    def deliver_late(self) -> None:
        self.at.deliver_late()

    @rule(pick=PICK)
    def lose(self, pick: int) -> None:
        self.at.lose(pick)

    @rule()
    def turn(self) -> None:
        self.at.turn()

    @rule()
    def flush(self) -> None:
        self.at.flush()

    @rule()
    def fair_round(self) -> None:
        self.at.round()

    @rule(slot=SLOT)
    def kill(self, slot: int) -> None:
        self.at.kill(slot)

    @rule()
    def restart(self) -> None:
        self.at.restart()

    @rule()
    def restart_busy(self) -> None:
        self.at.restart_busy()

    @rule()
    def restart_heard(self) -> None:
        self.at.restart_heard()

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 12.0, 40.0]))
    def advance(self, seconds: float) -> None:
        self.at.advance(seconds)

    @rule()
    def checkpoint(self) -> None:
        self.at.checkpoint()

    @rule()
    def lose_checkpoint(self) -> None:
        self.at.lose_checkpoint()

    @invariant()
    def every_promise_holds(self) -> None:
        if self.world is not None:
            check(self.world)

    def teardown(self) -> None:
        try:
            if self.world is not None:
                self.world.drain()
        finally:
            if self.world is not None:
                self.world.store.close()
            shutil.rmtree(self.folder)


QUIET = settings(
    derandomize=True,
    database=None,
    deadline=None,
    stateful_step_count=30,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def test_all_interleavings() -> None:
    """No sample lost, none trained twice, each in one state, effect once, the balance at every step."""
    run_state_machine_as_test(Machine, settings=settings(QUIET, max_examples=200))


@pytest.mark.slow
def test_many_more_interleavings() -> None:
    """The same promise over more and longer runs."""
    run_state_machine_as_test(Machine, settings=settings(QUIET, max_examples=5000, stateful_step_count=80))


class NoEpochCheck(Book):
    """Believes any answer to a leased sample."""

    def stands(self, row: Row, stage: Stage, epoch: int, holder: str) -> Verdict | None:
        return None if row.state is stage.leased else super().stands(row, stage, epoch, holder)


class DeadCreditKept(Book):
    """Forgets to void what a dead worker had asked for."""

    def holder_died(self, holder: str) -> int:
        kept = {stage: [c for c in credits.live(0.0) if c.holder == holder] for stage, credits in self.credits.items()}
        ended = super().holder_died(holder)
        self.dead.discard(holder)
        for stage, credits in kept.items():
            for c in credits:
                self.credits[stage].want(c.holder, c.n, c.version, c.at)
        return ended


class NoClaim(Book):
    """After a restart, does not listen to who still holds what."""

    before: frozenset[Lease] = frozenset()

    @classmethod
    def load(cls, rules: Rules, snapshot: Snapshot, now: float) -> Book:
        book = super().load(rules, snapshot, now)
        assert isinstance(book, NoClaim)
        book.before = frozenset((row.id, row.epoch) for row in book.rows.values() if row.holder)
        return book

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
        held = [lease for lease in held if lease not in self.before]
        return super().want(holder, stage, n, held, begun, version, now, greeted)


class NeverReturned(Book):
    """After a restart, waits for ever for holders that are gone."""

    @classmethod
    def load(cls, rules: Rules, snapshot: Snapshot, now: float) -> Book:
        return super().load(rules, snapshot, math.inf)


class NothingReopened(Book):
    """Takes a restored learner for one that goes on."""

    def restore(self, step: int, holder: str, done: object = None) -> list[int]:
        return super().restore(max(step, self.step), holder)


class RestoresTwice(Book):
    """Takes a repeated restore for a second one."""

    def restore(self, step: int, holder: str, done: object = None) -> list[int]:
        self.restored_by = ""
        return super().restore(step, holder)


class SuspectsTogether(Book):
    """Grants suspects like everybody else."""

    def holds_solo(self, stage: Stage, holder: str) -> bool:
        return False


@pytest.mark.parametrize(
    ("mutant", "ack_first", "first"),
    [
        pytest.param(Book, True, 70, id="ack-before-commit"),
        pytest.param(NoEpochCheck, False, 25, id="no-epoch-check"),
        pytest.param(DeadCreditKept, False, 0, id="dead-credit-kept"),
        pytest.param(NoClaim, False, 0, id="no-claim-after-restart"),
        pytest.param(NeverReturned, False, 10, id="unclaimed-never-returned"),
        pytest.param(NothingReopened, False, 0, id="restore-reopens-nothing"),
        pytest.param(RestoresTwice, False, 150, id="repeated-restore"),
        pytest.param(SuspectsTogether, False, 350, id="suspects-not-alone"),
    ],
)
def test_mutants_are_caught(mutant: type[Book], ack_first: bool, first: int) -> None:
    """Negative control: the same checker turns red for a ledger without one of its safeguards.

    `first` only saves time: the walk that notices comes soon after it.
    """
    for seed in range(first, first + 400):
        try:
            walk(seed, book=mutant, ack_first=ack_first)
        except (AssertionError, IllegalMoveError):
            return
    pytest.fail("no walk noticed")


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_random_walks(first: int) -> None:
    """The promises of the machine over seeded walks (seeds 0 to 119), longer than Hypothesis's."""
    for seed in range(first, first + 40):
        walk(seed, steps=120)


@pytest.mark.slow
def test_many_random_walks() -> None:
    """The same over 20,000 walks."""
    for seed in range(1000, 21_000):
        walk(seed, steps=150)
