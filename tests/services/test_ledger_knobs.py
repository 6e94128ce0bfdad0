"""Knobs of the ledger: each changes what it does from the next decision on, and unusable values are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.ledger_tools import LEARNER, generate, score, take, train
from support.sim import SimBus

from midflight.kernel.settings import Settings
from midflight.messages.base import Scalar
from midflight.messages.memory import Network
from midflight.services.ledger.config import LedgerConfig
from midflight.services.ledger.knobs import changed
from midflight.services.ledger.service import Ledger
from midflight.services.ledger.states import Split, State

TASK = "task:rev6-10?rows=64"
Make = Callable[..., Ledger]
BATCH = 4


def settings_of(folder: Path, config: LedgerConfig) -> Settings:
    """A ledger's settings in a run directory."""
    return Settings(
        run_dir=folder, run_id="x-00000000", name="ledger", slot="ledger", entry="", config=config, model={}, seed=0,
        python_path=(), endpoints={}, shm_dir=folder, kinds={"ledger": "ledger"},
    )  # fmt: skip


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A ledger with batches of two groups of two, started, with policy version 0."""

    def made(**config: Any) -> Ledger:
        values = {"data": {"train": TASK}, "prompts_per_rollout": 2, "responses_per_prompt": 2, "max_staleness": 1}
        checked = LedgerConfig.model_validate(values | config)
        one = Ledger("ledger#1", SimBus(Network(0, {"ctl": "kernel#0"}), "ledger#1"), settings_of(tmp_path, checked))
        one.start()
        one.ready = True
        one.book.publish(0, 0, LEARNER)
        one.work(0.0)
        return one

    return made


def turn(ledger: Ledger, field: str, value: Scalar) -> int:
    """Set a knob, and let the ledger take its turn."""
    step = ledger.apply_knob(f"ledger.{field}", value)
    ledger.work(0.0)
    return step


def opened(ledger: Ledger) -> int:
    """Training samples issued so far."""
    return ledger.book.opened[Split.TRAIN]


def to_ready(ledger: Ledger, rewards: Callable[[int], float] = float) -> None:
    """Generate and score whatever waits, by the newest policy."""
    generate(ledger.book, size=20, version=ledger.book.newest or 0)
    score(ledger.book, {id_: rewards(id_) for id_ in ledger.book.rows})


def test_every_knob_is_a_live_field_of_its_own_slot(make: Make) -> None:
    """All of them, named after the slot, with the configured value as default, also after a change."""
    ledger = make(max_lag=3)
    names = {knob.name for knob in ledger.knobs()}
    assert {"ledger.max_staleness", "ledger.evaluation.every", "ledger.on_stale"} <= names
    turn(ledger, "max_lag", 5)
    assert {knob.name: knob.default for knob in ledger.knobs()}["ledger.max_lag"] == 3


def test_max_staleness_admits_more_or_nothing(make: Make) -> None:
    """Two batches open; four after it is raised; none admitted after it is lowered, until enough are trained."""
    ledger = make()
    assert opened(ledger) == 2 * BATCH
    turn(ledger, "max_staleness", 3)
    assert opened(ledger) == 4 * BATCH
    to_ready(ledger)
    turn(ledger, "max_staleness", 0)
    for step in (1, 2, 3):
        train(ledger.book, step)
        ledger.work(0.0)
        assert opened(ledger) == 4 * BATCH
    train(ledger.book, 4)
    ledger.work(0.0)
    assert opened(ledger) == 5 * BATCH
    assert turn(ledger, "max_staleness", 1) == 4


def test_max_ready_mb_admits_more(make: Make) -> None:
    """Trajectories beyond the bound keep prompts out; a higher bound lets them in."""
    ledger = make(max_staleness=4, max_ready_mb=1)
    turn(ledger, "max_staleness", 9)
    generate(ledger.book, size=300_000)
    before = opened(ledger)
    turn(ledger, "max_staleness", 20)
    assert opened(ledger) == before
    turn(ledger, "max_ready_mb", 64)
    assert opened(ledger) > before


def test_version_slack_lets_an_engine_lag(make: Make) -> None:
    """An engine one version behind gets nothing, and gets prompts once it may."""
    ledger = make()
    ledger.book.publish(1, 1, LEARNER)

    def granted() -> int:
        ledger.book.want("generate#1", "generate", 4, [], [], 0, 0.0)
        grants = ledger.book.match(0.0)
        ledger.book.credits["generate"].revoke("generate#1")
        return sum(len(grant.leases) for grant in grants)

    assert granted() == 0
    turn(ledger, "version_slack", 1)
    assert granted() == 4


@pytest.mark.parametrize(("knob", "value", "dropped"), [("max_lag", 1, True), ("max_lag", 2, False)])
def test_max_lag_and_on_stale_judge_the_next_batch(make: Make, knob: str, value: int, dropped: bool) -> None:
    """Samples that wait are judged when their batch is formed, by what holds then."""
    ledger = make(max_lag=8)
    to_ready(ledger)
    ledger.book.publish(1, 1, LEARNER)
    ledger.book.publish(2, 2, LEARNER)
    turn(ledger, knob, value)
    leases = take(ledger.book, "train", n=1)
    assert (len(leases), ledger.book.totals[Split.TRAIN][State.FILTERED]) == ((0, 8) if dropped else (4, 0))
    if dropped:
        ledger.work(0.0)
        to_ready(ledger)
        ledger.book.publish(4, 4, LEARNER)
        turn(ledger, "on_stale", "train")
        assert len(take(ledger.book, "train", n=1)) == BATCH


def test_filter_zero_variance_begins_to_filter(make: Make) -> None:
    """Groups of equal rewards are trained before the change and filtered after it."""
    ledger = make()
    to_ready(ledger, lambda id_: 1.0)
    assert len(take(ledger.book, "train", n=1)) == BATCH
    turn(ledger, "filter_zero_variance", True)
    assert take(ledger.book, "train", n=1) == []
    assert ledger.book.totals[Split.TRAIN][State.FILTERED] == BATCH


def test_prompts_per_rollout_sizes_the_next_batch(make: Make) -> None:
    """A formed batch keeps its size; the next ones have the new one, smaller or larger."""
    ledger = make(max_staleness=3)
    to_ready(ledger)
    assert len(train(ledger.book, 1)) == 4
    turn(ledger, "prompts_per_rollout", 1)
    assert len(train(ledger.book, 2)) == 2
    turn(ledger, "prompts_per_rollout", 3)
    to_ready(ledger)
    assert len(train(ledger.book, 3)) == 6
    with pytest.raises(ValueError, match="a batch of 8200 samples"):
        turn(ledger, "prompts_per_rollout", 4100)


def test_evaluation_is_more_or_less_frequent(make: Make) -> None:
    """A round falls due by what holds when a version is published; a whole round has one temperature."""
    ledger = make(data={"train": TASK, "evaluation": TASK}, evaluation={"every": 100, "prompts": 2})
    book = ledger.book
    assert (book.evaluating, ledger._eval_temperature()) == (0, 1.0)
    turn(ledger, "evaluation.temperature", 0.0)
    assert ledger._eval_temperature() == 1.0
    to_ready(ledger)
    assert book.evaluating == -1
    book.publish(1, 1, LEARNER)
    assert book.evaluating == -1
    turn(ledger, "evaluation.every", 2)
    book.publish(2, 2, LEARNER)
    assert (book.evaluating, ledger._eval_temperature()) == (2, 0.0)


def test_lease_s_holds_for_the_next_lease(make: Make) -> None:
    """A lease taken before keeps its end; one taken after ends sooner, and a renewal takes the new time."""
    ledger = make(lease_s=30.0)
    before = take(ledger.book, "generate", "generate#1", n=2)
    turn(ledger, "lease_s", 2.0)
    after = take(ledger.book, "generate", "generate#2", n=2)
    assert ledger.book.expire(3.0) == len(after) == 2
    assert set(ledger.book.leases["generate"].ids) == {id_ for id_, _ in before}
    ledger.book.want("generate#1", "generate", 0, before, [], 0, 4.0)
    assert ledger.book.expire(7.0) == 2


def test_max_tries_counts_at_the_next_failure(make: Make) -> None:
    """A sample that ended one worker is refused at the second when two tries are all it has."""
    ledger = make(max_tries=50)
    for worker in ("generate#1", "generate#2"):
        (lease,) = take(ledger.book, "generate", worker, n=1)
        ledger.book.want(worker, "generate", 0, [lease], [lease], 0, 0.0)
        ledger.book.holder_died(worker)
        assert ledger.book.rows[lease[0]].state is (State.ISSUED if worker == "generate#1" else State.REFUSED)
        turn(ledger, "max_tries", 2)


def test_what_a_former_ledger_used_is_in_force_again(make: Make, tmp_path: Path) -> None:
    """Values that the kernel repeats before the start shape the book it loads."""
    config = LedgerConfig.model_validate({"data": {"train": TASK}, "prompts_per_rollout": 2, "responses_per_prompt": 2})
    again = Ledger("ledger#2", SimBus(Network(0, {"ctl": "kernel#0"}), "ledger#2"), settings_of(tmp_path, config))
    assert again.apply_knob("ledger.max_staleness", 4) == 0
    again.start()
    assert again.book.rules.max_staleness == 4
    again.ready = True
    again.book.publish(0, 0, LEARNER)
    again.work(0.0)
    assert opened(again) == 5 * BATCH


@pytest.mark.parametrize(
    ("config", "field", "value", "why"),
    [
        ({"deterministic": True, "max_staleness": 0}, "max_staleness", 1, "deterministic needs max_staleness: 0"),
        ({"deterministic": True, "max_staleness": 0}, "prompts_per_rollout", 3, "one cohort"),
        ({}, "evaluation.every", 5, "no held-out prompts"),
        ({}, "evaluation.temperature", 0.5, "no held-out prompts"),
        (
            {"version_slack": 4},
            "version_slack",
            3,
            r"rollout\.policy_delay: 4 versions, but ledger\.version_slack is 3",
        ),
        ({"version_slack": 4, "max_lag": 8}, "max_lag", 3, r"ledger\.max_lag is 3, and drops what is older"),
        ({"version_slack": 4, "max_lag": 3, "on_stale": "train"}, "on_stale", "drop", "drops what is older"),
    ],
)
def test_unusable_values_are_refused(
    tmp_path: Path, config: dict[str, Any], field: str, value: Scalar, why: str
) -> None:
    """With the reason; what the other slots of the topology need is looked up there."""
    parts = {
        "ledger": {"kind": "ledger"},
        "rollout": {"kind": "rollout", "policy_delay": 4 if "version_slack" in config else 0},
    }
    (tmp_path / "config.json").write_text(json.dumps({"services": parts}))
    before = LedgerConfig.model_validate({"data": {"train": TASK}, **config})
    with pytest.raises(ValueError, match=why):
        changed(before, field, value, settings_of(tmp_path, before))


def test_a_clash_that_was_there_before_refuses_nothing(tmp_path: Path) -> None:
    """Only what a change brings about counts against it."""
    parts = {"ledger": {"kind": "ledger"}, "rollout": {"kind": "rollout", "policy_delay": 4}}
    (tmp_path / "config.json").write_text(json.dumps({"services": parts}))
    before = LedgerConfig.model_validate({"data": {"train": TASK}, "version_slack": 0})
    assert changed(before, "max_lag", 9, settings_of(tmp_path, before)).max_lag == 9
