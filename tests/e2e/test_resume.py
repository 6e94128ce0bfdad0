"""kill -9 of everything, then `up --resume`: on from the last verified checkpoint, with every sample accounted for."""

import contextlib
import json
import random
import sqlite3
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from support.e2e_run import (
    SLOW,
    Up,
    checkpoints,
    copy_run,
    events,
    flip_bit,
    is_step,
    midflight,
    nothing_left,
    records,
    samples,
    tiny,
)

from midflight.kernel.rundir import RunDir
from midflight.services.learner.checkpoints.checkpoint import verify

BATCH = 16
STEPS = 6


def accounted(run: Path, steps: int) -> None:
    """The ledger balances, and each step up to `steps` has trained one full batch of samples of its own."""
    balance = midflight(run, "ledger", "--run", str(run), "--json")
    assert balance.code == 0, balance
    assert balance.json["step"] == balance.json["committed"] == steps
    assert sum(balance.json["states"].values()) == balance.json["issued"]
    trained = Counter(row["step"] for row in samples(run) if row["state"] == "trained")
    assert trained == dict.fromkeys(range(1, steps + 1), BATCH)
    with contextlib.closing(sqlite3.connect(run / "ledger.sqlite")) as db:
        moves = db.execute("select id, state, why from life where id < ? order by rowid", (1 << 40,)).fetchall()
    for row in samples(run):
        assert net_trainings(moves, row["id"]) == (row["state"] == "trained"), row


def net_trainings(moves: list[tuple[int, str, str]], sample: int) -> int:
    """How often it was trained, less how often that was undone because the step was lost."""
    life = [(state, why) for id_, state, why in moves if id_ == sample]
    undone = sum(state == "ready" and before == "trained" for (before, _), (state, _) in pairwise(life))
    return sum(state == "trained" for state, _ in life) - undone


def timeline(run: Path) -> list[int]:
    """Steps in the order trained, over all lives of the run."""
    return [record["step"] for record in records(run) if is_step(record)]


def kill_after(up: Up, step: int, rng: random.Random) -> None:
    """Wait for a step, and up to 0.3 s more; then SIGKILL everything at once."""
    up.step(step)
    up.ended(rng.uniform(0.0, 0.3))
    up.kill_everything()


def kill_and_resume(folder: Path, seed: int, kills: int, steps: int) -> Path:
    """Kill a run `kills` times at seeded moments, let it end, and check the books.

    The first kill comes early, so that each later life still has a step to train before its own.
    """
    rng = random.Random(seed)
    topology = tiny(folder, "demo", steps, SLOW)
    for number in range(kills):
        with Up(folder, topology, *(["--resume"] if number else [])) as up:
            kill_after(up, rng.randint(1, steps // 4) if not number else 1, rng)
    with Up(folder, topology, "--resume") as up:
        assert up.wait() == 0, up.output
        assert list(nothing_left(up.path, up.run_id())) == []
    accounted(up.path, steps)
    for before, after in pairwise(timeline(up.path)):
        assert after <= before + 1, "a step was skipped"
    assert timeline(up.path)[-1] == steps
    return up.path


def test_killed_twice_and_resumed(tmp_path: Path) -> None:
    """Two kills of everything in a row: no sample lost, none trained twice, the target reached."""
    kill_and_resume(tmp_path, seed=3, kills=2, steps=16)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_many_times(tmp_path: Path, seed: int) -> None:
    """The same, four kills a run, over seeds."""
    kill_and_resume(tmp_path, seed=100 + seed, kills=4, steps=64)


def test_corrupt_checkpoint_falls_back_one_step(finished: Up, topology: Path, tmp_path: Path) -> None:
    """A flipped bit in the newest checkpoint: the one before is used, which is said, and the books still balance."""
    run = copy_run(finished.path, tmp_path / "run")
    before = len(records(run))
    flip_bit(checkpoints(run)[-1] / "model.safetensors")
    with Up(tmp_path, topology, "--resume", f"services.learner.steps={STEPS + 1}") as up:
        assert up.wait() == 0, up.output
    assert [r["step"] for r in records(run)[before:] if is_step(r)] == [5, 6, 7]
    notes = [e["values"]["text"] for e in events(run, "note")]
    (said,) = [text for text in notes if "checkpoint passed over" in text]
    assert "step-00000026/model.safetensors: size or BLAKE2b differs from the manifest" in said
    assert "going on from step-00000024" in said
    assert said in up.output
    assert "checkpoint passed over" in midflight(tmp_path, "logs", "--run", str(run), "learner").out
    accounted(run, STEPS + 1)
    assert [verify(path).extra["step"] for path in checkpoints(run)] == [6, 7]


@pytest.mark.slow
def test_lost_journal_costs_no_sample(finished: Up, topology: Path, tmp_path: Path) -> None:
    """A journal of random bytes is set aside; services get generations never used before, and the books balance."""
    run = copy_run(finished.path, tmp_path / "run")
    flip_bit(checkpoints(run)[-1] / "model.safetensors")  # so that there is something to train again
    (run / "journal.bin").write_bytes(random.Random(0).randbytes(4096))
    before = len(records(run))
    with Up(tmp_path, topology, "--resume") as up:
        assert up.wait() == 0, up.output
    assert [r["step"] for r in records(run)[before:] if is_step(r)] == [5, 6]  # the stream's new numbers are followed
    assert list(run.glob("journal.bin.damaged-*"))
    assert (run / "logs" / "learner.2.out").exists()
    accounted(run, STEPS)


def test_finished_run_has_nothing_left_to_do(finished: Up, topology: Path, tmp_path: Path) -> None:
    """--resume takes the newest run of that name, says that it is finished, trains nothing, and ends with 0."""
    runs = tmp_path / "runs"
    runs.mkdir()
    for number, name in enumerate(("younger", "older")):
        run = copy_run(finished.path, runs / name)
        info = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**info, "started_ns": info["started_ns"] - number}))
    before = len(records(runs / "younger"))
    done = midflight(tmp_path, "up", str(topology), "--resume")
    assert done.code == 0, done
    assert "nothing left to do: 6 steps are trained, `steps` is 6" in done.out
    assert f"run directory     {runs / 'younger'}" in done.out
    assert not any(is_step(record) for record in records(runs / "younger")[before:])
    accounted(runs / "younger", STEPS)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=1", "the run began with seed = 0, and the topology now says 1"),
        ("services.ledger.responses_per_prompt=2", "began with services.ledger.responses_per_prompt = 4"),
        ("services.ledger.data.train=task:sort6-10", "began with services.ledger.data.train = "),
        ("model.build.hidden_size=32", "began with model = "),
    ],
)
def test_changes_that_give_samples_another_meaning_are_refused(
    finished: Up, topology: Path, tmp_path: Path, override: str, said: str
) -> None:
    """Before anything is started or written: the run can still be resumed afterwards."""
    run = copy_run(finished.path, tmp_path / "run")
    files = {path.name: path.read_bytes() for path in run.iterdir() if path.suffix == ".json"}
    refused = midflight(tmp_path, "up", str(topology), "--run-dir", str(run), "--resume", override)
    assert refused.code == 2
    assert said in refused.err
    assert "Set it back, or start a new run" in refused.err
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.suffix == ".json"} == files
    assert not RunDir(run).is_live()


def test_data_that_has_changed_is_told_and_may_be_accepted(tmp_path: Path) -> None:
    """A row more than the run began with: it does not go on by itself, and does when told to."""
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(f'{{"prompt": "rev {word}", "answer": "{word[::-1]}"}}\n' for word in ("abc", "bcde") * 32))
    topology, own = tiny(tmp_path, steps=2), f"services.ledger.data.train={data}"
    with Up(tmp_path, topology, own) as up:
        assert up.wait() == 0, up.output
    with data.open("a") as file:
        file.write('{"prompt": "rev ab", "answer": "ba"}\n')
    more = ("--resume", own, "services.learner.steps=3")
    with Up(tmp_path, topology, *more) as up:
        assert up.wait() == 2, up.output
        assert "(64 rows then, 65 now)" in up.output
        assert "services.ledger.data.changed=accept" in up.output
    with Up(tmp_path, topology, *more, "services.ledger.data.changed=accept") as up:
        assert up.wait() == 0, up.output
    accounted(up.path, 3)


def test_run_directory_is_not_reused_by_accident(finished: Up, topology: Path, tmp_path: Path) -> None:
    """A used directory needs --resume; --resume needs a used one."""
    used = midflight(tmp_path, "up", str(topology), "--run-dir", str(finished.path))
    assert used.code == 2
    assert "a run was here; --resume goes on with it, --run-dir names another place" in used.err
    fresh = midflight(tmp_path, "up", str(topology), "--run-dir", str(tmp_path / "new"), "--resume")
    assert fresh.code == 2
    assert "no run to resume here" in fresh.err
    unnamed = midflight(tmp_path, "up", str(topology), "--resume")
    assert unnamed.code == 3
    assert "no run 'demo' under runs" in unnamed.err
