"""A real run of several turns whose sandboxes are killed and stopped at every level, from the service to the call."""

import contextlib
import json
import random
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from support.e2e_run import Up, is_step, midflight, nothing_left, records, samples
from support.e2e_turns import trajectories
from support.sandbox_bench import need
from support.sandbox_storm import Storm, World, files_left, topology

from midflight.services.ledger import payload

BATCH = 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_sandboxes_and_reward_services_under_random_faults(tmp_path: Path, seed: int) -> None:
    """Every batch is trained once and whole, every tool call has one effect, and nothing of the sandboxes is left."""
    need("namespaces")
    steps = 12
    world = World()
    with Up(tmp_path, topology(tmp_path, steps, world.server_port)) as up:
        up.step(1)
        storm = Storm(up, random.Random(seed))
        while not up.ended(storm.rng.uniform(0.05, 0.3)) and _step(up.path) < steps - 1:
            storm.strike()
        assert up.wait(240.0) == 0, up.output
        left = [*nothing_left(up.path, up.run_id()), *storm.left()]
    world.shutdown()
    balance = midflight(tmp_path, "ledger", "--run", str(up.path), "--json")
    refused = [row["why"] for row in samples(up.path) if row["state"] == "refused"]
    again = sum(n - 1 for n in world.asked.values())
    print(f"seed {seed}: {storm.faults.total()} faults {dict(sorted(storm.faults.items()))}, {balance.json['states']}, "
          f"{len(world.answers)} tool calls, {again} asked again, refused {refused}")  # fmt: skip
    assert balance.code == 0, balance.out
    trained = Counter(row["step"] for row in samples(up.path) if row["state"] == "trained")
    assert sorted(trained) == list(range(1, steps + 1))
    assert trained.total() + len(refused) == steps * BATCH
    assert all("the process of the call was killed by signal 9" in why for why in refused), refused  # twice in a row
    assert len(refused) <= 2
    assert storm.faults.total() >= 6
    _check_calls(up.path, world)
    assert left == []
    assert files_left(up.path) == []


def _step(run: Path) -> int:
    """How many steps are trained."""
    return max((int(row["step"]) for row in records(run) if is_step(row)), default=0)


def _check_calls(run: Path, world: World) -> None:
    """A turn was told in one way, carried out once, and committed once, with what the first try was answered."""
    assert all(len(bodies) == 1 for bodies in world.bodies.values())
    with contextlib.closing(sqlite3.connect(run / "ledger.sqlite")) as db:
        told = Counter(db.execute("select id, why from life where why like 'turn %'").fetchall())
    assert told
    assert set(told.values()) == {1}, "a committed turn was done again"
    checked = 0
    for id_, blob in trajectories(run).items():
        said = [one["content"] for one in json.loads(payload.tail_of(blob)) if one["role"] == "tool"]
        assert said == [world.answers[f"{id_}:{turn}"] for turn in range(len(said))]
        checked += len(said)
    assert checked
