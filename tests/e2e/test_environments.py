"""A real run on an environment of verifiers: its rows, its tools, its rewards, in a sandbox."""

import json
import os
from pathlib import Path

import pytest
from support.e2e_run import Up, is_step, midflight, nothing_left, records, tiny
from support.sandbox_bench import need

ENVIRONMENTS = Path(__file__).parents[1] / "support" / "environments"
TOPOLOGY = """
extends: {beside}
run: sums
python_path: [{packages}]
services:
  ledger: {{data: {{train: train.jsonl, evaluation: null}}, epochs: 2, max_turns: 2, prompts_per_rollout: 2}}
  rollout: {{max_length: 512, max_new_tokens: 8}}
  reward:
    file: null
    trusted: {trusted}
    environment: verifiers:mf-sums
    environment_args: {{count: 16}}
    time_limit_s: 60
  learner: {{update_per_rollout: 1}}
"""


def test_a_run_on_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From `midflight rows` to steps that tell each of its rewards; nothing is refused, and nothing is left."""
    need("namespaces")
    pytest.importorskip("verifiers", reason="verifiers is not installed: `make test-environments` has it")
    monkeypatch.setenv("PYTHONPATH", f"{os.environ.get('PYTHONPATH', '')}:{ENVIRONMENTS}")
    made = midflight(tmp_path, "rows", "verifiers:mf-sums", "--args", '{"count": 16}', "--out", "train.jsonl")
    assert made.code == 0, made.err
    beside = tiny(tmp_path, steps=2)
    (tmp_path / "sums.yaml").write_text(TOPOLOGY.format(beside=beside.name, packages=ENVIRONMENTS, trusted="false"))
    with Up(tmp_path, tmp_path / "sums.yaml", "model.build.max_position_embeddings=512") as up:
        assert up.wait() == 0, up.output
    balance = midflight(tmp_path, "ledger", "--run", str(up.path), "--json").json
    assert "refused" not in balance["states"], balance
    assert balance["states"]["trained"] == 2 * 8
    steps = [row["values"] for row in records(up.path) if is_step(row)]
    assert {"objective/right", "objective/asked", "objective/calls", "objective/spoke"} <= set(steps[0])
    assert list(nothing_left(up.path, up.run_id())) == []
    assert json.loads((tmp_path / "train.jsonl").read_text().splitlines()[3])["answer"]["table"] == {"a3": 3, "b3": 30}
