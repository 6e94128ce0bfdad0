"""A small real run through every real service: what it must have done and left behind when it ends by itself."""

import contextlib
import json
import sqlite3
from functools import partial
from pathlib import Path

import pytest
from support.e2e_run import Up, checkpoints, copy_run, events, is_step, midflight, nothing_left, records, samples

from midflight.kernel.sample_files import list_steps, read_step
from midflight.services.learner.checkpoints.checkpoint import verify

STEPS, BATCH = 6, 16
AHEAD = 2
"""`max_staleness` of the demo, and the batch that is being trained."""


def test_every_step_once_and_in_order(finished: Up) -> None:
    """metrics.jsonl has each step's metrics exactly once, numbered without a hole, and each evaluation once."""
    found = records(finished.path)
    assert [record["step"] for record in found if is_step(record)] == list(range(1, STEPS + 1))
    numbers = [record["seq"] for record in found if "seq" in record]
    assert numbers == sorted(set(numbers))
    versions = [record["values"]["version"] for record in found if "eval/reward" in record["values"]]
    assert versions == sorted(set(versions))
    assert versions[0] == 0


def test_summary_tells_where_the_run_is(finished: Up) -> None:
    """The terminal shows every step and, at the end, the outcome and the run directory."""
    lines = finished.output.splitlines()
    assert sum(line.startswith("step ") for line in lines) == STEPS
    assert any(line.startswith("done after ") for line in lines)
    assert f"run directory     {finished.path}" in lines


def test_ledger_balances_and_says_when_it_does_not(finished: Up, tmp_path: Path) -> None:
    """Exit 0 with the sums of a true ledger; exit 1, naming the sample, after one row was tampered with."""
    balance = midflight(tmp_path, "ledger", "--run", str(finished.path), "--json")
    assert balance.code == 0, balance.err
    assert balance.json["issued"] == sum(balance.json["states"].values())
    assert balance.json["states"]["trained"] == STEPS * BATCH
    assert balance.json["step"] == balance.json["committed"] == STEPS
    assert not balance.json["problems"]
    broken = copy_run(finished.path, tmp_path / "broken")
    with contextlib.closing(sqlite3.connect(broken / "ledger.sqlite")) as db, db:
        (victim,) = db.execute("select max(id) from sample where state = 'trained' and closed = 0").fetchone()
        db.execute("update sample set step = null where id = ?", (victim,))
    doctored = midflight(tmp_path, "ledger", "--run", str(broken))
    assert doctored.code == 1
    assert f"PROBLEM sample {victim} is trained without a step" in doctored.out
    with contextlib.closing(sqlite3.connect(broken / "ledger.sqlite")) as db, db:
        db.execute("delete from sample where id = ?", (victim,))
    assert midflight(tmp_path, "ledger", "--run", str(broken)).code == 1


def test_every_sample_was_trained_in_one_step(finished: Up) -> None:
    """Whole groups, a full batch a step, nobody filtered, and closed once two checkpoints hold it."""
    trained = [row for row in samples(finished.path) if row["state"] == "trained"]
    for step in range(1, STEPS + 1):
        batch = [row for row in trained if row["step"] == step]
        assert len(batch) == BATCH
        assert len({row["group"] for row in batch}) == 4
    with contextlib.closing(sqlite3.connect(finished.path / "ledger.sqlite")) as db:
        closed = db.execute("select count(*) from sample where closed and state = 'trained'").fetchone()[0]
        kept = db.execute("select count(*) from payload join sample using (id) where closed").fetchone()[0]
    assert closed == 4 * BATCH  # up to step 4, which the older of the two checkpoints holds
    assert kept == 0


def test_only_the_last_two_checkpoints_are_kept_and_both_verify(finished: Up) -> None:
    """Named by supervised and RL steps together; nothing half-written lies beside them."""
    assert [path.name for path in checkpoints(finished.path)] == ["step-00000024", "step-00000026"]
    manifests = [verify(path) for path in checkpoints(finished.path)]
    assert [manifest.extra["step"] for manifest in manifests] == [4, 6]
    assert not list((finished.path / "checkpoints").glob(".*"))


def test_nothing_is_left(finished: Up) -> None:
    """No process of the run, no socket, no shared memory, no lock."""
    assert list(nothing_left(finished.path, finished.run_id())) == []


def test_staleness_stays_within_its_bound(finished: Up) -> None:
    """Admission lets no more batches be open than `max_staleness` ahead of the one in training."""
    steps = [record["values"] for record in records(finished.path) if is_step(record)]
    assert max(values["lag_max"] for values in steps) <= AHEAD
    assert all(values["lag_max"] >= values["lag_mean"] >= 0.0 for values in steps)


def test_the_controller_moves_its_knob_and_the_learner_says_from_which_step(finished: Up) -> None:
    """kl.coef changes by the controller's hand; each applied version names the step that first used it."""
    moves = [e["values"] for e in events(finished.path, "knob") if e["values"]["knob"] == "kl.coef"]
    assert moves
    assert all(move["author"] == "kl#1" for move in moves)
    assert len({move["value"] for move in moves}) > 1
    applied = [e["values"] for e in events(finished.path, "knob.applied") if e["values"]["knob"] == "kl.coef"]
    in_force = {one["version"]: one["step"] for one in applied}
    assert all(in_force[move["version"]] >= 1 for move in moves[:-1])
    assert list(in_force.values()) == sorted(in_force.values())
    decided = [e["values"]["at_step"] for e in events(finished.path, "controller")]
    assert decided == list(range(decided[0], STEPS + 1))  # every step since the knob was granted
    assert json.loads(events(finished.path, "controller")[-1]["values"]["state"])


def test_samples_of_every_step_are_kept_token_by_token(finished: Up) -> None:
    """Two whole groups a step, as the ledger and metrics.jsonl know them, and `midflight samples` shows them."""
    path, rows = finished.path, {row["id"]: row for row in samples(finished.path)}
    assert list_steps(path) == list(range(1, STEPS + 1))
    for kept in map(partial(read_step, path), list_steps(path)):
        assert [len(group.samples) for group in kept.groups] == [4, 4]
        for group in kept.groups:
            for one in group.samples:
                row = rows[one.id]
                assert (row["step"], row["group"], json.loads(row["rewards"])) == (
                    kept.step,
                    group.prompt_id,
                    one.rewards,
                )
                assert one.tokens[-1] == "<|end|>" if one.finish == "stop" else len(one.tokens) == 12
                gap = [a - b for a, b in zip(one.columns["logprob"], one.columns["behaviour"], strict=True)]
                assert one.columns["gap"] == pytest.approx(gap, abs=1e-5)
                assert set(one.columns["mask"]) == {1.0}
                assert max(one.columns["version"]) <= kept.version
    shown = midflight(path, "samples", "--run", str(path), "--step", "3", "--tokens")
    assert shown.code == 0, shown.err
    assert shown.out.startswith("step 3, policy version 2;")
    assert shown.out.count("\n  sample ") == 8
    one = read_step(path, 5).groups[0].samples[0]
    told = midflight(path, "samples", "--run", str(path), "--id", str(one.id), "--json")
    assert [sample["tokens"] for group in told.json["groups"] for sample in group["samples"]] == [one.tokens]
    assert midflight(path, "samples", "--run", str(path), "--step", "99").code == 1
