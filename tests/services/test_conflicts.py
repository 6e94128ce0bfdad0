"""What does not go together is refused before anything starts, by the place and with what to do."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from midflight.kernel.config import load_topology
from midflight.kernel.config.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
NONE: dict[str, Any] = {"data": {"evaluation": None}}
OBJECTIVES = {"objective_weights": {"exact": 1.0}}
LEARNER = {"objective_weights": {"exact": 1.0, "other": 1.0}}


def complaint(folder: Path, services: dict[str, Any], base: str = "demo") -> str:
    """What loading the topology says; fails when it says nothing."""
    path = folder / "t.yaml"
    path.write_text(yaml.safe_dump({"extends": str(CONFIGS / f"{base}.yaml"), "run": "t", "services": services}))
    with pytest.raises(ConfigError, match=r"\.yaml") as told:
        load_topology(str(path), [], [])
    return str(told.value)


@pytest.mark.parametrize(
    ("services", "said"),
    [
        ({"rollout": {"policy_delay": 2}, "ledger": NONE}, "ledger.version_slack is 0"),
        ({"rollout": {"policy_delay": 9}, "ledger": {**NONE, "version_slack": 9}}, "ledger.max_lag is 8"),
        ({"rollout": {"policy_delay": 2}, "ledger": {"version_slack": 2}}, "set ledger.data.evaluation to null"),
        ({"objectives": {"objective_weights": {"Exact": 1.0}}}, "named in a-z"),
        ({"objectives": {"objective_weights": {"exact": 0.0}}, "learner": LEARNER}, "all 0"),
        ({"objectives": {"objective_weights": {"exact": 2e6}}, "learner": LEARNER}, "beyond 1e+06"),
        ({"objectives": OBJECTIVES}, "learner.objective_weights does not name exact"),
        ({"objectives": {**OBJECTIVES, "archive_size": 1}, "learner": LEARNER}, "archive_size"),
        ({"objectives": {**OBJECTIVES, "ranges": {"prefix": [0, 1]}}, "learner": LEARNER}, "ranges names 'prefix'"),
        ({"objectives": {**OBJECTIVES, "ranges": {"exact": [1, 1]}}, "learner": LEARNER}, "must be less than 1"),
        (
            {
                "objectives": {**OBJECTIVES, "method": "hypervolume", "pareto_method": "weighted_sum"},
                "learner": LEARNER,
            },
            "give one of them",
        ),
        (
            {"objectives": OBJECTIVES, "more": {"kind": "objectives", **OBJECTIVES}, "learner": LEARNER},
            "holds objectives.weights.exact too",
        ),
        ({"again": {"kind": "kl"}}, "holds kl.coef too"),
        ({"narrow": {"kind": "kl", "knob": "clip.range"}, "clip": {}}, "holds clip.range too"),
        ({"kl": {"controller_type": "schedule", "schedule_type": "exponential", "min_coef": 0.0}}, "never reaches 0"),
        ({"learner": {"adv": {"center": True}}}, "adv.center is for estimators with a critic"),
        ({"learner": {"adv": {"estimator": "ema"}, "kl": {"type": "reward"}}}, "knows nothing of a KL in the reward"),
        ({"learner": {"proximal": "loglinear"}}, "is for losses that read pi_old"),
        ({"ledger": {"max_turns": 2}}, "rewards/exact.py does not define interact(messages)"),
    ],
)
def test_refused(services: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in complaint(tmp_path, services)


@pytest.mark.parametrize(
    ("services", "base"),
    [
        ({"distill": {"teacher": "zzz"}}, "distill"),
        ({"distill": {}}, "distill"),  # the name in the shipped file is no folder's
        ({"learner": {"kl": {"reference": "zzz"}}}, "distill-on-policy"),
    ],
)
def test_a_teacher_that_is_nowhere_is_refused_by_its_line(services: dict[str, Any], base: str, tmp_path: Path) -> None:
    """Before anything starts; so is a run in its place."""
    (service,) = services
    key = "teacher" if base == "distill" else "kl.reference"
    name = "zzz" if services[service] else "teacher"
    assert f"services.{service}.{key}: no such file or folder: " in complaint(tmp_path, services, base)
    (tmp_path / "zzz" / "model").mkdir(parents=True)
    (tmp_path / "zzz" / "run.json").write_text("{}")
    if name == "zzz":
        said = f"services.{service}.{key}: that is a run; its model is zzz/model (got 'zzz')"
        assert said in complaint(tmp_path, services, base)


def test_six_objectives_are_too_many_for_a_hypervolume(tmp_path: Path) -> None:
    weights = {f"r{n}": 1.0 for n in range(6)}
    services = {
        "learner": {"objective_weights": weights},
        "objectives": {"objective_weights": weights, "pareto_method": "hypervolume"},
    }
    assert "at most 5" in complaint(tmp_path, services)


def test_two_limits_on_one_metric_need_one_controller(tmp_path: Path) -> None:
    """Several limits in one controller know of each other; those of two would wind each other up."""
    limit = {"metric": "entropy", "at_least": 0.1, "knob": "entropy.coef"}
    other = {"metric": "entropy", "at_most": 2.0, "knob": "clip.range", "most": 0.5}
    services = {"kl": None, "a": {"kind": "constraints", "limits": {"x": limit}}}
    services["b"] = {"kind": "constraints", "limits": {"y": other}}
    assert "steers by entropy too" in complaint(tmp_path, services)
