"""New weights five times a second while everything is being generated: no token is called what it is not.

Every version's weights make every token's log-prob another, so each of them is held against what its version would have
said (`support/updates_oracle.py`). MIDFLIGHT_SOAK_S and MIDFLIGHT_SOAK_SEED change length and seed of the long ones.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from support.updates_run import show, soak, topology

pytestmark = pytest.mark.alone

LONG_S = float(os.environ.get("MIDFLIGHT_SOAK_S", "600"))
SEED = int(os.environ.get("MIDFLIGHT_SOAK_SEED", "1"))
CACHED: dict[str, dict[str, Any]] = {}
"""As by default: running requests keep the keys and values of old weights, to which these policies pay no attention."""
RECOMPUTED: dict[str, dict[str, Any]] = {"rollout": {"recompute_kv": True, "slots": 16}, "learner": {"attends": True}}
"""Keys and values are computed anew, so that all of the weights are in every log-prob."""
TORN_EVERY = 25
MOST_GROWTH_MB = 24.0


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of a run find the services of the soak; the variable goes back afterwards."""
    monkeypatch.setenv("PYTHONPATH", "")


def changed(base: dict[str, dict[str, Any]], **more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Both, slot by slot."""
    return {name: base.get(name, {}) | more.get(name, {}) for name in base.keys() | more.keys()}


def test_a_few_seconds(tmp_path: Path) -> None:
    """Some damaged on their way, none of which comes into force."""
    found = soak(tmp_path, topology(SEED, 6.0, **changed(CACHED, learner={"torn_every": 7})))
    show(found)
    assert not found.problems
    assert found.verdict["torn"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [CACHED, RECOMPUTED], ids=["cached", "recomputed"])
def test_ten_minutes(tmp_path: Path, kind: dict[str, dict[str, Any]]) -> None:
    """Besides that: nothing is lost, every damaged version is refused, and nothing grows."""
    found = soak(tmp_path, topology(SEED, LONG_S, **changed(kind, learner={"torn_every": TORN_EVERY})))
    show(found)
    assert not found.problems
    torn = set(found.verdict["torn"])
    assert torn <= found.refused.keys() | found.skipped
    assert len(found.refused) > 0.5 * len(torn)
    assert found.busy > 0.95
    for name in ("rollout", "reward", "tracker"):
        assert found.growth(name) < MOST_GROWTH_MB, f"{name} grows"


@pytest.mark.slow
@pytest.mark.parametrize("mutant", ["late", "torn"])
@pytest.mark.parametrize("kind", [CACHED, RECOMPUTED], ids=["cached", "recomputed"])
def test_negative_control(tmp_path: Path, kind: dict[str, dict[str, Any]], mutant: str) -> None:
    """A version that begins a token later than it is said to, or of which a part was not loaded, is found out."""
    found = soak(tmp_path, topology(SEED, 8.0, **changed(kind, rollout={"mutant": mutant})))
    show(found)
    assert any("not of the version they name" in problem for problem in found.problems), found.problems
