"""Synchronous deterministic mode: whatever is killed whenever, the run ends with the same bits."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.e2e_run import SLOW, Record, Up, events, is_step, midflight, records, samples, tiny, weights

STEPS = 6


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("sync")
    with Up(folder, tiny(folder, "sync", STEPS, SLOW)) as up:
        assert up.wait() == 0, up.output
    return up.path


def in_warm_up(record: Record) -> bool:
    """A checkpoint before the first policy."""
    return record.get("event") == "checkpoint" and record["values"]["stage"] == "sft"


def evaluated(record: Record) -> bool:
    """An evaluation round has ended, so a batch is being generated."""
    return any(name.startswith("eval/") for name in record["values"])


def checkpointed(record: Record) -> bool:
    """A checkpoint of the RL stage was just written."""
    return record.get("event") == "checkpoint" and record["values"]["stage"] == "rl"


MOMENTS = {"warm-up": in_warm_up, "evaluation": evaluated, "step": is_step, "checkpoint": checkpointed}


def interrupt(up: Up, moment: str, rng: random.Random) -> None:
    """Kill everything a little after the moment (up to 0.4 s, about one step), unless the run is over first."""
    up.event(moment, MOMENTS[moment])
    up.ended(rng.uniform(0.0, 0.4))
    up.kill_everything()


def outcome(run: Path) -> Iterator[tuple[int, str, int | None, str]]:
    """What became of every sample that was trained."""
    return ((row["id"], row["state"], row["step"], row["rewards"]) for row in samples(run) if row["step"] is not None)


def steps_of(run: Path) -> dict[int, Record]:
    """The last record of every step, without what measures time or counts versions, which a resume adds to."""
    timed = ("train_s", "wait_s", "version", "lag_mean", "lag_max")
    return {
        record["step"]: {name: value for name, value in record["values"].items() if name not in timed}
        for record in records(run)
        if is_step(record)
    }


def test_killed_run_ends_like_the_undisturbed_one(undisturbed: Path, tmp_path: Path) -> None:
    """kill -9 of everything in the warm-up and around a checkpoint: same weights, same samples."""
    rng = random.Random(1)
    topology = tiny(tmp_path, "sync", STEPS, SLOW)
    for number, moment in enumerate(("warm-up", "checkpoint")):
        with Up(tmp_path, topology, *(["--resume"] if number else [])) as up:
            interrupt(up, moment, rng)
    with Up(tmp_path, topology, "--resume") as up:
        assert up.wait() == 0, up.output
    same(up.path, undisturbed)


def same(run: Path, other: Path) -> None:
    """Bit for bit: the weights, the metrics of every step, and which sample was trained in which."""
    assert steps_of(run) == steps_of(other)
    assert list(outcome(run)) == list(outcome(other))
    assert weights(run) == weights(other)
    balance = midflight(run, "ledger", "--run", str(run), "--json")
    assert balance.code == 0, balance.err


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_at_random_moments(undisturbed: Path, tmp_path: Path, seed: int) -> None:
    """Five kills at seeded moments, then to the end."""
    rng = random.Random(seed)
    topology = tiny(tmp_path, "sync", STEPS, SLOW)
    for number in range(5):
        with Up(tmp_path, topology, *(["--resume"] if number else [])) as up:
            if interrupted(up, rng) == "over":
                break
    with Up(tmp_path, topology, "--resume") as up:
        assert up.wait() == 0, up.output
    same(up.path, undisturbed)


def interrupted(up: Up, rng: random.Random) -> str:
    """Interrupt at a moment that still lies ahead, and name it; "over" when the run ended before it came."""
    moment = rng.choice(["warm-up", "evaluation", "step", "checkpoint"])
    if moment == "warm-up" and events(up.path, "checkpoint"):
        moment = "step"
    try:
        interrupt(up, moment, rng)
    except AssertionError:
        assert up.ended(0.0), up.output
        return "over"
    return moment


@pytest.mark.slow
def test_same_seed_same_bits_other_seed_other_bits(undisturbed: Path, tmp_path: Path) -> None:
    """Nothing but the seed decides."""
    for seed, equal in ((0, True), (1, False)):
        with Up(tmp_path, tiny(tmp_path, "sync", STEPS, SLOW), f"seed={seed}", where=f"seed{seed}") as up:
            assert up.wait() == 0, up.output
        assert (weights(up.path) == weights(undisturbed)) is equal
