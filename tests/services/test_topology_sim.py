"""A whole topology in one process: the real kernel and ledger, workers under lease, seeded faults, a virtual clock.

A seed repeats a run exactly; a failing seed is the reproduction. Messages are delayed (so they overtake each other),
lost and repeated; services and the kernel are killed and stopped at seeded moments. At the end every sample issued is
in exactly one state, and each was trained exactly once.
"""

import hashlib
import random
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.chaos_config import FAST, ConsumerConfig, GeneratorConfig, ScorerConfig
from support.chaos_consumer import Consumer
from support.chaos_services import Generator, Scorer
from support.sim import SimBus, World

from midflight.kernel.node import Node
from midflight.kernel.settings import Settings
from midflight.kernel.spec import ServiceSpec
from midflight.services.ledger.config import LedgerConfig
from midflight.services.ledger.service import Ledger
from midflight.services.ledger.status import offline

GROUPS, GROUP, PROMPTS = 4, 4, 60
SERVICES = ("ledger", "rollout-0", "rollout-1", "reward", "learner")
KINDS = {"ledger": "ledger", "rollout": "rollout", "reward": "reward", "learner": "learner"}
LONGEST_S = 600.0


def specs() -> dict[str, ServiceSpec]:
    """Four kinds, fast to judge a hang and slow to give up."""
    common: dict[str, Any] = {**FAST, "depends_on": ["ledger"]}
    ledger = LedgerConfig.model_validate(
        {
            **FAST,
            "data": {"train": f"task:rev6-10?rows={PROMPTS}"},
            "epochs": 1,
            "prompts_per_rollout": GROUPS,
            "responses_per_prompt": GROUP,
            "max_lag": 1000,
            "lease_s": 2.0,
            "claim_s": 1.0,
        }
    )
    return {
        "ledger": ledger,
        "rollout": GeneratorConfig.model_validate({**common, "replicas": 2, "slots": 16}),
        "reward": ScorerConfig.model_validate({**common, "slots": 32}),
        "learner": ConsumerConfig.model_validate({**common, "step_s": 0.05}),
    }


def play(seed: int, folder: Path, loss: float = 0.05, faults_per_s: float = 1.0) -> World:
    """One run to its end."""
    configs = specs()

    def make(kind: type[Any], slot: str, identity: str, bus: SimBus) -> Node:
        settings = Settings(
            run_dir=folder, run_id="sim-00000000", name=identity.split("#")[0], slot=slot, entry="",
            config=configs[slot], model={}, seed=seed, python_path=(), endpoints={}, shm_dir=folder, kinds=KINDS,
        )  # fmt: skip
        made: Node = kind(identity, bus, settings)
        return made

    kinds = {"ledger": Ledger, "rollout": Generator, "reward": Scorer, "learner": Consumer}
    run = World(seed, configs, {s: partial(make, kind, s) for s, kind in kinds.items()}, loss=loss, repeat=loss)
    rng = random.Random(seed)
    at = 1.0
    while faults_per_s and at < 20.0:
        victim = rng.choice([*SERVICES, "kernel"])
        if victim == "kernel":
            run.network.at(at, partial(run.crash_kernel, rng.uniform(0.05, 0.5)))
        else:
            run.network.at(at, partial(rng.choice([run.crash, run.crash, run.stop]), victim))
        at += rng.expovariate(faults_per_s)
    run.run(LONGEST_S)
    return run


def account(run: World, folder: Path) -> list[str]:
    """Everything that is wrong with the end of a run."""
    wrong = list(run.faults)
    if run.code != 0:
        wrong.append(f"run ended with {run.code} at {run.network.clock:.1f} s")
    status = offline(folder / "ledger.sqlite", None)
    wrong += status.problems
    with closing(sqlite3.connect(folder / "effects.sqlite")) as effects:
        total, distinct = effects.execute("select count(*), count(distinct sample) from effect").fetchone()
    wanted = PROMPTS * GROUP
    if status.states != {"trained": wanted}:
        wrong.append(f"states {status.states}, wanted {wanted} trained")
    if (total, distinct) != (wanted, wanted):
        wrong.append(f"{total} effects on {distinct} samples, wanted {wanted} on as many")
    return wrong


@pytest.mark.parametrize("seed", range(6))
def test_no_sample_is_lost_or_trained_twice(seed: int, tmp_path: Path) -> None:
    """About twenty faults, and every twentieth message lost or repeated."""
    assert account(play(seed, tmp_path), tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 400))
def test_no_sample_is_lost_or_trained_twice_many_seeds(seed: int, tmp_path: Path) -> None:
    """The same with twice the faults."""
    assert account(play(seed, tmp_path, loss=0.1, faults_per_s=2.0), tmp_path) == []


def history(run: World) -> str:
    """A digest of the journal but for its wall clock and random ids."""
    kept = [
        (r["seq"], r["source"], r["topic"], sorted((k, v) for k, v in r["body"].items() if k not in ("boot", "digest")))
        for r in run.journal.records
        if r["t"] == "event"
    ]
    return hashlib.sha256(repr(kept).encode()).hexdigest()


def test_a_seed_repeats_a_run_exactly(tmp_path: Path) -> None:
    """Same seed, same journal; another seed, another one."""
    digests = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        digests.append(history(play(seed, folder)))
    assert digests[0] == digests[1] != digests[2]
