"""Controllers in a real run: every knob they hold follows their law, also across a death."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from support.e2e_run import SLOW, SLOW_PARTS, Up, events, hit, tiny

from midflight.services.controllers.clip import AdaptiveClipper
from midflight.services.controllers.constraints import Bound, ConstraintOptimizer
from midflight.services.controllers.kl import AdaptiveKLController
from midflight.services.controllers.objectives import MultiObjectiveOptimizer

STEPS = 10
LIMITS = """
  constraints:
    method: pid
    limits:
      kl: {metric: kl, at_most: 0.02, knob: kl.coef, most: 1.0}
      entropy: {metric: entropy, at_least: 5.0, knob: entropy.coef, most: 1.0}
      lr: {metric: entropy, at_least: 5.0, knob: optim.lr, initial: 2.0, most: 9.0}
"""
METRIC = {"lr": "entropy"}
KNOBS = {"kl": "kl.coef", "entropy": "entropy.coef", "lr": "optim.lr"}
"""A learning rate of 2 lies beyond its knob's bounds: refused and told, while the other knobs go on."""
WEIGHTS = {"exact": 1.0, "prefix": 0.5, "length": 0.5}


@pytest.mark.parametrize("slot", ["clip", "constraints", "objectives", "entropy"])
def test_knobs_follow_the_law_across_a_death(slot: str, tmp_path: Path) -> None:
    """Replayed offline over what it was told, the law gives the values that the run's knobs took, killed or not."""
    topology = tiny(tmp_path, slot, STEPS, SLOW_PARTS if slot == "objectives" else SLOW)
    if slot == "constraints":
        topology.write_text(topology.read_text() + LIMITS)
    with Up(tmp_path, topology) as up:
        up.event("a decision", lambda record: record.get("source") == f"{slot}#1" and record["event"] == "controller")
        hit(up, slot, signal.SIGKILL)
        assert up.wait() == 0, up.output
    decisions = [one for one in events(up.path, "controller") if one["source"].startswith(slot)]
    assert {one["source"] for one in decisions} == {f"{slot}#1", f"{slot}#2"}
    took: dict[str, set[float]] = {}
    for move in events(up.path, "knob"):
        took.setdefault(move["values"]["knob"], set()).add(move["values"]["value"])
    replay = {"clip": clip, "constraints": constraints, "objectives": objectives, "entropy": entropy}[slot]
    for values, expected in zip(decided(decisions), replay(decisions), strict=True):
        assert values == expected
    steered = decided(decisions)[-1].keys() - {"optim.lr"}
    for knob in steered:
        assert decided(decisions)[-1][knob] in took[knob]
        assert len(took[knob]) > 1
    if slot == "constraints":
        assert "optim.lr" not in took
        assert (up.path / "logs" / "constraints.jsonl").read_text().count("value refused") in (
            1,
            2,
        )  # once a generation; the first may die before it is told


def decided(decisions: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Knob to value, a decision."""
    return [
        {name.removeprefix("value/"): value for name, value in one["values"].items() if name.startswith("value/")}
        for one in decisions
    ]


def clip(decisions: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What one law that never died says."""
    law = AdaptiveClipper(kl_target=1e-3)
    return [{"clip.range": law.update(one["values"]["mismatch_k3"])} for one in decisions]


def constraints(decisions: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The same of two limits; every decision also says whether they are kept."""
    bounds = {"kl": Bound(0.02, most=1.0), "entropy": Bound(5.0, at_most=False, most=1.0)}
    bounds["lr"] = Bound(5.0, at_most=False, initial=2.0, most=9.0)
    law, out = ConstraintOptimizer(bounds, "pid"), []
    for one in decisions:
        coefficients = law.update(
            {name: one["values"][METRIC.get(name, name)] for name in bounds}, one["values"]["at_step"]
        )
        out.append({KNOBS[name]: value for name, value in coefficients.items()})
        assert {one["values"][f"status/{name}"] for name in bounds} <= {"satisfied", "violated", "infeasible"}
        assert json.loads(one["values"]["state"])["step"] == one["values"]["at_step"]
    return out


def entropy(decisions: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The same of an entropy bonus that is annealed."""
    law = AdaptiveKLController(
        0.01, min_coef=0.0, controller_type="schedule", schedule_type="linear", schedule_steps=100
    )
    return [{"entropy.coef": law.update(one["values"]["entropy"], one["values"]["at_step"])} for one in decisions]


def objectives(decisions: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The same of three rewards, whose means are metrics of every step."""
    ranges = {"exact": (0.0, 1.0), "prefix": (0.0, 1.0), "length": (-1.0, 0.0)}
    law = MultiObjectiveOptimizer(list(WEIGHTS), WEIGHTS, "tchebycheff", ranges=ranges, temperature=0.1)
    out = []
    for one in decisions:
        values = one["values"]
        weights = law.update({name: values[f"objective/{name}"] for name in WEIGHTS}, values["at_step"])
        out.append({f"objectives.weights.{name}": value for name, value in weights.items()})
        assert values["front_size"] == len(law.get_pareto_front())
    return out
