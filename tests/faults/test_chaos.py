"""Real processes under random faults: nothing lost, nothing twice, nobody left; and the same with a rule taken out."""

import contextlib
import json
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from support.chaos_config import HERE
from support.chaos_run import BATCH, ChaosRun
from support.chaos_services import turns_of

pytestmark = pytest.mark.alone

Slots = dict[str, dict[str, Any]]
POISON = {"rollout": {"poison": [37]}, "reward": {"poison": [150, 301]}}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's processes find the chaos services; the variable goes back afterwards."""
    monkeypatch.setenv("PYTHONPATH", "")


def test_storm(tmp_path: Path) -> None:
    """10 batches while every process of the run, the ledger and the kernel are killed and stopped, seed 1.

    Every sample is trained exactly once, whatever was resent, and nothing outlives the run.
    """
    with ChaosRun(tmp_path, 10 * BATCH, {"learner": {"step_s": 0.4}}) as run:
        run.until("trained", BATCH)
        run.storm(seed=1, seconds=7)
        account = run.account(within_s=60)
    print(account)
    assert account.faults.total() >= 8
    assert not account.problems, account


def test_storm_of_turns(tmp_path: Path) -> None:
    """The same where two of three episodes are generated again after the tools spoke, seed 2.

    Every worker finds what came before its turn as it was, each sample has all of its turns, and none of them twice.
    """
    slots: Slots = {"ledger": {"max_turns": 3}, "learner": {"step_s": 0.4}}
    with ChaosRun(tmp_path, 8 * BATCH, slots) as run:
        run.until("trained", BATCH)
        run.storm(seed=2, seconds=7)
        account = run.account(within_s=90)
    print(account)
    assert account.faults.total() >= 8
    assert not account.problems, account
    all_turns_once(run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_long_storm_of_turns(tmp_path: Path, seed: int) -> None:
    """Five seeds, 3,008 episodes each."""
    slots: Slots = {"ledger": {"max_turns": 3}, "learner": {"step_s": 0.25}}
    with ChaosRun(tmp_path, 47 * BATCH, slots) as run:
        run.until("trained", BATCH)
        run.storm(seed, seconds=40)
        account = run.account(within_s=180)
    print(f"seed {seed}: {account}")
    assert account.faults.total() >= 40
    assert not account.problems, account
    all_turns_once(run)


def all_turns_once(run: ChaosRun) -> None:
    """Whatever was resent or issued again: the tools' answer to a turn was committed once."""
    with contextlib.closing(sqlite3.connect(run.dir / "ledger.sqlite")) as db:
        past = dict(db.execute("select id, past from sample where state = 'trained'").fetchall())
        told = Counter(db.execute("select id, why from life where why like 'turn %'").fetchall())
    assert {id_: len(json.loads(epochs or "[]")) // 2 for id_, epochs in past.items()} == {
        id_: turns_of(id_) - 1 for id_ in range(run.samples)
    }
    assert set(told.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_long_storm(tmp_path: Path, seed: int) -> None:
    """The acceptance run: five seeds, 6,016 samples each, about 2 faults a second."""
    with ChaosRun(tmp_path, 94 * BATCH, {"learner": {"step_s": 0.25}}) as run:
        run.until("trained", BATCH)
        run.storm(seed, seconds=40)
        account = run.account(within_s=180)
    print(f"seed {seed}: {account}")
    assert account.faults.total() >= 40
    assert not account.problems, account


@pytest.mark.slow
def test_long_storm_with_poison(tmp_path: Path) -> None:
    """Three samples that kill their worker are refused among 3,008 under random kills of services; nobody else is."""
    slots: Slots = {"learner": {"step_s": 0.25}, "ledger": {"max_tries": 5}, **POISON}
    with ChaosRun(tmp_path, 47 * BATCH, slots) as run:
        run.until("trained", BATCH)
        run.storm(seed=9, seconds=20, names=("rollout-0", "reward-1", "learner", "ledger"))
        account = run.account(within_s=120)
    print(account)
    assert not account.problems, account


def test_poison(tmp_path: Path) -> None:
    """A sample that kills its generator and two that kill their scorer are refused after four begun tries, alone.

    Their 61 companions of the moment are trained, once each.
    """
    with ChaosRun(tmp_path, 6 * BATCH, POISON) as run:
        account = run.account(within_s=60)
    assert not account.problems, account
    assert account.states["refused"] == 3


# --- controls: each scenario is green with the protocol as it is, and red with one rule taken out


def _nothing(run: ChaosRun) -> None:
    pass


def _kill_generators(run: ChaosRun) -> None:
    run.until("running", BATCH)
    for name in ("rollout-0", "rollout-1"):
        assert run.hit(name, signal.SIGKILL)


CRASH: Slots = {"ledger": {"env": {"MIDFLIGHT_CRASH_AT": "before_commit:10"}}}
SLOW: Slots = {"rollout": {"work_s": 0.5, "slots": 256}, "ledger": {"lease_s": 60.0}}
LATE: Slots = {"learner": {"late": True}, "ledger": {"lease_s": 0.2}}
SHORT: Slots = {"ledger": {"lease_s": 0.2}}


def _merged(*parts: Slots) -> Slots:
    names = {name for part in parts for name in part}
    return {name: {key: value for part in parts for key, value in part.get(name, {}).items()} for name in names}


def _kind(name: str) -> Slots:
    return {"ledger": {"kind": f"{HERE}:{name}"}}


CONTROLS: list[tuple[str, Slots, Callable[[ChaosRun], None], Slots, str]] = [
    ("no resend", CRASH, _nothing, {"rollout": {"forgetful": True}, "reward": {"forgetful": True}}, "not over"),
    ("ack before commit", SHORT, _nothing, _kind("EagerLedgerConfig"), "effects twice"),
    ("no epoch check", LATE, _nothing, _kind("EpochlessLedgerConfig"), "effects twice"),
    ("credit of dead peers kept", SLOW, _kill_generators, _kind("FaithfulLedgerConfig"), "not over"),
]


def _cases() -> Iterable[Any]:
    for name, slots, act, mutation, wanted in CONTROLS:
        marks = [pytest.mark.slow] if wanted == "not over" else []  # these wait for their deadline
        yield pytest.param(slots, act, "", id=f"{name}: control", marks=marks)
        yield pytest.param(_merged(slots, mutation), act, wanted, id=name, marks=marks)


@pytest.mark.parametrize(("slots", "act", "wanted"), list(_cases()))
def test_negative_control(tmp_path: Path, slots: Slots, act: Callable[[ChaosRun], None], wanted: str) -> None:
    """A rule of the protocol taken out turns the account red; the same faults without the mutation stay green."""
    with ChaosRun(tmp_path, 5 * BATCH, slots) as run:
        act(run)
        account = run.account(within_s=15)
    if wanted:
        assert any(wanted in problem for problem in account.problems), account
    else:
        assert not account.problems, account
