"""`benchmarks/gpu.py`, rehearsed with a CPU in the GPU's place: its checks pass."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def rehearsed(*words: str) -> dict[str, object]:
    """The JSON line of a run that ends well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert not done.returncode, done.stderr[-3000:]
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_checks_pass_on_a_cpu() -> None:
    """Attention, ring, head, engine; the numbers of each are there."""
    found = rehearsed("--device", "cpu", "--only", "estimators", "kernels", "updates", "engine")
    rows = found["rows"]
    assert isinstance(rows, list)
    assert found["wrong"] == []
    assert all(0 <= row["measured"] <= row["allowed"] < 0.1 for row in rows)
    assert {"blocks of a ring, bfloat16", "rl update, bf16: grad_norm"} <= {row["what"] for row in rows}


@pytest.mark.slow
def test_a_group_and_timings_on_a_cpu() -> None:
    """Two ranks over gloo in every mesh, and the share of the matrix products."""
    found = rehearsed("--device", "cpu", "--only", "group", "mfu")
    assert found["wrong"] == []
    assert "MFU" in str(found["rows"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    """And ends with 2."""
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "no GPU\n")
