"""Weights are offered five times a second while a real server generates: each token is of the version it names."""

import os
from pathlib import Path
from typing import Any

import pytest
from support.updates_config import HERE
from support.updates_run import show, soak, topology

LONG_S = float(os.environ.get("MIDFLIGHT_SOAK_S", "600"))
SEED = int(os.environ.get("MIDFLIGHT_SOAK_SEED", "1"))
TORN_EVERY = 25
LARGEST_GROWTH_MB = 64.0
"""Of the service and its server's three processes."""


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_minutes(python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some damaged on their way. All of the weights are in every log-prob: keys and values are computed anew."""
    monkeypatch.setenv("PYTHONPATH", "")
    changes: dict[str, dict[str, Any]] = {
        "rollout": {"kind": f"{HERE}:WatchedSglangConfig", "device": "cpu", "python": python, "slots": 32},
        "ledger": {"version_slack": 1000},  # it is behind most of the time
        "learner": {"attends": True, "torn_every": TORN_EVERY},
    }
    found = soak(tmp_path, topology(SEED, LONG_S, **changes))
    show(found)
    assert not found.problems
    assert found.applied > LONG_S / 30
    assert found.growth("rollout") < LARGEST_GROWTH_MB
