"""Each trainer on rows as a whole run, shrunk to seconds: what it prints and leaves, a kill, and what comes then."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.e2e_run import CONFIGS, Up, checkpoints, copy_run, events, hit, midflight, nothing_left, records
from transformers import AutoModelForSequenceClassification

from midflight.services.learner.checkpoints.checkpoint import verify
from midflight.services.learner.checkpoints.stored import whole_model

STEPS = 6
SHRUNK = """
extends: {base}
services:
  {kind}:
    steps: {steps}
    batch_size: 16
    data: 'task:sort6-10?rows=64&split=train&seed=1'
    evaluation: {{data: 'task:sort6-10?rows=16&split=eval', every: 3}}
    checkpoint_every: 2
  tracker: {{}}
"""
KINDS = {"sft": "sft", "reward-model": "reward_model", "dpo": "dpo", "distill": "distill"}


def shrunk(folder: Path, name: str, steps: int = STEPS) -> Path:
    """A shipped topology, in seconds."""
    path = folder / f"{name}.yaml"
    path.write_text(SHRUNK.format(base=CONFIGS / f"{name}.yaml", kind=KINDS[name], steps=steps))
    return path


def steps(run: Path) -> list[int]:
    """In the order in which they were trained."""
    return [record["step"] for record in records(run) if "epoch" in record.get("values", {})]


def held_out(run: Path) -> list[int]:
    """Steps that were evaluated."""
    return [record["step"] for record in records(run) if any(n.startswith("eval/") for n in record["values"])]


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Up:
    """A finished run of sft.yaml, on which the others build."""
    folder = tmp_path_factory.mktemp("sft")
    with Up(folder, shrunk(folder, "sft")) as up:
        assert up.wait() == 0, up.output
    return up


def test_a_run_of_steps_ends_by_itself(sft: Up) -> None:
    """Every step once, evaluations at the start, between and at the end, two checkpoints, a model, nothing else."""
    assert steps(sft.path) == list(range(1, STEPS + 1))
    assert held_out(sft.path) == [0, 3, 6]
    assert [verify(path).extra["step"] for path in checkpoints(sft.path)] == [4, 6]
    assert json.loads((sft.path / "model/config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    assert list(nothing_left(sft.path, sft.run_id())) == []
    assert "done after" in sft.output
    assert "at step 6 (16 rows)" in sft.output
    assert f"step {STEPS}/{STEPS} loss" in sft.output


@pytest.mark.parametrize("name", ["reward-model", "dpo", "distill"])
def test_a_chain(name: str, sft: Up, tmp_path: Path) -> None:
    """What sft.yaml leaves is what the others begin with."""
    teacher = [f"services.distill.teacher={sft.path / 'model'}"] if name == "distill" else []
    with Up(tmp_path, shrunk(tmp_path, name), "model.build=null", f"model.path={sft.path / 'model'}", *teacher) as up:
        assert up.wait() == 0, up.output
    assert steps(up.path) == list(range(1, STEPS + 1))
    assert (up.path / "model/model.safetensors").exists()


def test_its_checkpoints_are_listed_and_exported(sft: Up, tmp_path: Path) -> None:
    """By `midflight models`: what was left at the end is what the newest one is exported as."""
    listed = midflight(tmp_path, "models", "ls", str(sft.path))
    assert listed.code == 0, listed
    assert f" rows   {STEPS} " in listed.out
    assert listed.out.rstrip().endswith("yes")
    done = midflight(tmp_path, "models", "export", str(sft.path), "--out", str(tmp_path / "out"), "--step", str(STEPS))
    assert done.code == 0, done
    one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", sft.path / "model"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert "`sft` on `task:" in (tmp_path / "out" / "README.md").read_text()


def test_two_ranks_train_as_one(sft: Up, tmp_path: Path) -> None:
    """The same losses as one process's, to what float32 leaves."""
    with Up(tmp_path, shrunk(tmp_path, "sft"), "services.sft.ranks=2") as up:
        assert up.wait() == 0, up.output
    both = [[r["values"]["loss"] for r in records(run) if "epoch" in r["values"]] for run in (up.path, sft.path)]
    assert both[0] == pytest.approx(both[1], rel=1e-3)
    assert (up.path / "model/model.safetensors").exists()


def test_adapters_of_ranks_that_share_layers(tmp_path: Path) -> None:
    """A reward model by two ranks of tensor parallel: adapters and score train, and what is left is a plain model."""
    choices = ("ranks=2", "tp_size=2", "lora={r: 4}")
    path = shrunk(tmp_path, "reward-model")
    with Up(tmp_path, path, *(f"services.reward_model.{choice}" for choice in choices)) as up:
        assert up.wait() == 0, up.output
    older, newer = map(whole_model, checkpoints(up.path))
    moved = {name for name in newer if not torch.equal(older[name], newer[name])}
    assert moved == {name for name in newer if "lora_" in name or name == "score.weight"}
    model, loaded = AutoModelForSequenceClassification.from_pretrained(up.path / "model", output_loading_info=True)
    assert not loaded["missing_keys"] | loaded["unexpected_keys"]
    assert torch.equal(model.score.weight, newer["score.weight"])


def test_killed_and_steered_it_goes_on(tmp_path: Path) -> None:
    """SIGKILL of the trainer: it is back from its checkpoint; a knob holds from the step that is told."""
    with Up(tmp_path, shrunk(tmp_path, "sft", 100_000)) as up:
        up.event("a checkpoint", lambda record: record.get("event") == "checkpoint")
        told = midflight(tmp_path, "set", "optim.lr=1e-4", "--run", str(up.path))
        assert told.code == 0, told
        hit(up, "sft", signal.SIGKILL)
        up.event("a step again", lambda r: r.get("source", "").startswith("sft#2") and "epoch" in r["values"])
        more = midflight(tmp_path, "set", "sft.steps=1", "--run", str(up.path))
        assert "are trained already" in more.out + more.err
        assert midflight(tmp_path, "down", "--run", str(up.path)).code == 0
        up.wait()
    again = [r for r in records(up.path) if "epoch" in r.get("values", {}) and r["source"] == "sft#2"]
    done = steps(up.path)
    assert again[0]["values"]["lr"] == pytest.approx(1e-4, rel=1e-6) or again[0]["step"] < 30
    assert again[0]["step"] <= done[len(done) - len(again) - 1] + 1
    assert verify(checkpoints(up.path)[-1]).extra["step"] == done[-1]
    assert not (up.path / "model").exists()  # it was ended before its last step


def test_a_finished_run_goes_on_with_more_steps(sft: Up, tmp_path: Path) -> None:
    """`--resume` with other `steps` begins at the next one."""
    run = copy_run(sft.path, tmp_path / "run")
    with Up(tmp_path, shrunk(tmp_path, "sft"), "--resume", f"services.sft.steps={STEPS + 2}") as up:
        assert up.wait() == 0, up.output
    assert steps(run)[STEPS:] == [STEPS + 1, STEPS + 2]


def test_bad_rows_are_one_clear_error(tmp_path: Path) -> None:
    """The run ends before a step, with file, line and field, and the exit code of a mistake."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b"}\n')
    with Up(tmp_path, shrunk(tmp_path, "dpo"), f"services.dpo.data={rows}") as up:
        assert up.wait() == 2, up.output
    assert f"{rows}:1: rejected: missing; the row has: prompt, chosen" in up.output
    assert "Traceback" not in up.output
    assert not events(up.path, "checkpoint")


def test_one_trainer_a_run(tmp_path: Path) -> None:
    """Two of them are refused before anything starts."""
    path = tmp_path / "both.yaml"
    path.write_text(f"extends: [{CONFIGS / 'sft.yaml'}]\nservices: {{dpo: {{data: 'task:sort6-10?rows=64'}}}}\n")
    checked = midflight(tmp_path, "config", "check", str(path))
    assert checked.code == 2
    assert "trains the model of this run already" in checked.out + checked.err
