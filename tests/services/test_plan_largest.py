"""The largest sizes that fit: where bisection ends, what is printed, and a real step with just that memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from midflight.kernel.cli.main import main
from midflight.kernel.cli.plan import told
from midflight.kernel.config import load_topology
from midflight.services.learner.offline.config import DpoConfig, SftTrainerConfig
from midflight.services.learner.offline.trainer import OfflineTrainer
from midflight.services.learner.planning.devices import FILL
from midflight.services.learner.planning.largest import NOTCH, largest, last
from midflight.services.learner.planning.plan import Planner

ROOT = Path(__file__).parents[2]
CHILD = ROOT / "tests" / "support" / "limited_step.py"
MODEL: dict[str, Any] = {
    "build": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "max_position_embeddings": 2048,
    },
    "tokenizer": "bytes",
}
MIB = 1 << 20
MEMORY = 160 * MIB
LETTERS = 300


@pytest.mark.parametrize("most", [0, 1, 2, 7, 64])
def test_the_last_that_holds_is_found(most: int) -> None:
    """Wherever it stops, in as many tries as the number has binary digits, none of them out of bounds."""
    for limit in range(most + 2):
        tried: list[int] = []

        def holds(n: int, limit: int = limit, tried: list[int] = tried) -> bool:
            tried.append(n)
            return n <= limit

        assert last(holds, most) == min(limit, most)
        assert all(1 <= n <= most for n in tried)
        assert len(tried) <= most.bit_length() + 1


def topology(*overrides: str) -> Planner:
    loaded = load_topology(str(ROOT / "configs" / "demo.yaml"), [], list(overrides))
    return Planner(loaded.data["model"], loaded.topology.services, 0)


def test_one_notch_more_does_not_fit() -> None:
    """Neither of samples nor, where the model knows more, of tokens; it is told by which term."""
    planner = topology()
    planner.memory = 40 * MIB
    micro_batch, sample = largest(planner)
    assert micro_batch.plan is not None
    assert micro_batch.plan.fits
    assert micro_batch.beyond_needs is not None
    assert micro_batch.needs <= FILL * planner.memory < micro_batch.beyond_needs
    assert f"largest micro-batch: {micro_batch.count} samples" in told(micro_batch, "samples")
    assert told(micro_batch, "samples").endswith("what grows is activations")
    assert (sample.count, sample.beyond) == (128, None)  # all that the model knows
    assert "largest sample: 128 tokens, alone in a micro-batch" in told(sample, "samples")
    assert told(sample, "samples").endswith("there is no use for more")


@pytest.mark.slow
def test_nothing_fits_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """With what weighs most, and no keys to set."""
    assert main(["plan", "demo", "--device-memory", "2MiB", "--largest"]) == 1
    out = capsys.readouterr().out
    assert "largest micro-batch: none\n  one more would need" in out
    assert "what grows is rollout: keys and values" in out


@pytest.mark.slow
def test_what_is_printed_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    """The keys of the answer, in the topology, are a plan that fits and needs what was said."""
    command = ["plan", "demo", "--device-memory", "12MiB", "--json"]
    main([*command, "--largest"])
    micro_batch, sample = json.loads(capsys.readouterr().out)["largest"]
    for one in (micro_batch, sample):
        keys = [f"services.{key}={value}" for key, value in one["keys"].items()]
        assert main([*command, *keys]) == 0
        assert json.loads(capsys.readouterr().out)["devices"][0]["needs"] == one["needs"]
    assert sample["keys"]["rollout.max_length"] == sample["count"] < 128
    assert sample["stopped"] == "rollout: keys and values"


@pytest.mark.slow
def test_pairs_have_two_texts() -> None:
    """Of so many tokens together; what is printed holds exactly them."""
    planner = Planner(MODEL, {"dpo": DpoConfig(data="x", device="cpu", batch_size=64)}, MEMORY, row=200)
    micro_batch, sample = largest(planner)
    assert micro_batch.plan is not None
    assert micro_batch.keys == {"dpo.max_length_per_device": micro_batch.count * 198}
    assert micro_batch.plan.work.texts(micro_batch.plan.layout, guessed=False) == ((2 * micro_batch.count, 99),)
    assert sample.keys == {"dpo.max_length_per_device": sample.count - 2}
    assert sample.count % NOTCH == 0


def config(folder: Path, count: int, length: int) -> dict[str, Any]:
    """Two micro-batches of so many equal rows, each of so many tokens."""
    text = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y" * LETTERS}]
    rows = folder / f"{count}.jsonl"
    rows.write_text(f"{json.dumps({'messages': text})}\n" * 2 * count)
    held = {"max_length_per_device": count * (length - 1)} if length else {}
    return {"data": str(rows), "batch_size": 2 * count, "device": "cpu", "bf16": "off", **held}


def row_tokens(folder: Path) -> int:
    """Of each row."""
    fields = config(folder, 1, 0)
    probe = OfflineTrainer(SftTrainerConfig(**fields, evaluation={"data": fields["data"]}), MODEL, 0, folder)
    probe.read_examples()
    return len(probe.held_out[0].ids)


@pytest.mark.slow
def test_a_real_step_of_that_size_fits_the_memory(tmp_path: Path) -> None:
    """The planner's answer runs with the device's memory and no byte more; twice as large a micro-batch does not."""
    length = row_tokens(tmp_path)
    trainer = SftTrainerConfig(**{**config(tmp_path, 1, 0), "batch_size": 256})
    micro_batch, sample = largest(Planner(MODEL, {"sft": trainer}, MEMORY, length))
    count = micro_batch.count
    assert 4 <= count < 64
    assert micro_batch.keys == {"sft.max_length_per_device": count * (length - 1)}
    assert sample.count > length
    configs = [config(tmp_path, n, length) for n in (count, 2 * count)]
    asked = {"memory": MEMORY, "model": MODEL, "configs": configs, "folder": str(tmp_path)}
    # As much as is asked for comes from the system, and goes back to it.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(CHILD), json.dumps(asked)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
    fits, too_large = map(json.loads, ran.stdout.splitlines())
    assert fits == {"tokens": 2.0 * count * (length - 1), "pack/fill": 1.0}
    assert "memory" in too_large["error"]
