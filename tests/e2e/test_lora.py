"""A real run that trains adapters only: the engine samples from exactly what the learner trains."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from support.e2e_run import Up, checkpoints, events, is_step, records, tiny


def test_a_run_with_lora_publishes_merged_weights(tmp_path: Path) -> None:
    """Log-probs of engine and learner agree at every step, adapters move, the base does not."""
    topology = tiny(tmp_path, steps=4)
    exact = "services.rollout.recompute_kv=true"  # else tokens behind an update are of both versions
    choices = (
        exact,
        "services.learner.lora={r: 8}",
        "services.learner.optim.name=muon",
        "services.learner.kl.type=loss",
    )
    with Up(tmp_path, topology, *choices) as up:
        assert up.wait() == 0, up.output
    steps = [record["values"] for record in records(up.path) if is_step(record)]
    gaps = [step["logprob_gap/max"] for step in steps if "logprob_gap/max" in step]
    assert gaps
    assert max(gaps) < 1e-3
    assert steps[-1]["kl"] > 0
    assert not [e for e in events(up.path, "note") if "logprob_gap_alarm" in e["values"]["text"]]
    begun, ended = (
        load_file(path / "model.safetensors")
        for path in (up.path / "checkpoints" / "reference" / "step-00000000", checkpoints(up.path)[-1])
    )
    moved = {name for name in begun if not torch.equal(begun[name], ended[name])}
    assert moved == {name for name in begun if "lora_" in name}
