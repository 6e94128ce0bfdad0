"""The studies of the documentation in small, by their own commands, asserting only what no seed has turned round."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def study(script: str, results: Path, *words: str) -> dict[str, dict[str, Any]]:
    """Run a study as a user would; -> its lines by arm."""
    command = [
        sys.executable,
        str(BENCHMARKS / script),
        "--seeds",
        "1",
        "--first-seed",
        "200",
        "--results",
        str(results),
    ]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert all(f"| {line['labels']['arm']} |" in done.stdout for line in lines)
    return {line["labels"]["arm"]: line for line in lines}


@pytest.mark.slow
def test_the_control_study_runs(tmp_path: Path) -> None:
    """No law has shown a difference that seeds would not turn round: that its command works is all that is held."""
    (line,) = study("klcontrol.py", tmp_path / "results.jsonl", "--arms", "pid, smoothed").values()
    assert len(line["series"]["kl"]) == 100
    assert max(line["series"]["kl"]) > 0.01
    assert line["accuracy"] > 0.3


@pytest.mark.alone
def test_a_correction_decides_at_a_lag_of_32(tmp_path: Path) -> None:
    """At the larger learning rate: samples taken for the policy's own end far below those the clip keeps it near."""
    lines = study(
        "offpolicy.py", tmp_path / "results.jsonl", "--lags", "32", "--rates", "5e-4", "--arms", "none", "PPO clip"
    )
    assert lines["PPO clip"]["accuracy"] > lines["none"]["accuracy"] + 0.2
    for line in lines.values():
        lags = line["series"]["lag_mean"]
        assert lags == [float(min(step, 32)) for step in range(len(lags))]
