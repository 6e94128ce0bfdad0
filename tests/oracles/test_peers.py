"""Agreement with tianshou, Stable-Baselines3 and omnisafe, frozen by freeze_peers.py."""

import json

import torch
from support.some_steps import some_steps
from torch.testing import assert_close

from midflight.services.algorithms import estimators
from midflight.services.algorithms.steps import Steps
from midflight.services.controllers.constraints import Bound, ConstraintOptimizer
from oracles.freeze_peers import COSTS, DELAY, GAINS, GAMMA, LAMDA, OUT, SMOOTHING

FROZEN = json.loads(OUT.read_text())


def test_gae_of_tianshou() -> None:
    """With terminations and time limits inside, to 1e-12."""
    found = estimators.gae(some_steps(0), GAMMA, LAMDA).advantages
    assert_close(found, torch.tensor(FROZEN["tianshou"]["gae"], dtype=torch.float64), rtol=0.0, atol=1e-12)


def test_gae_of_stable_baselines() -> None:
    """It knows no time limits inside and computes in float32; at the end of the buffer it bootstraps."""
    steps = some_steps(1)
    last = torch.zeros_like(steps.cut)
    last[:, -1] = True
    ended = Steps.of(
        steps.rewards, steps.values, steps.next_values, steps.cut & ~last, last, torch.zeros_like(steps.rewards)
    )
    found = estimators.gae(ended, GAMMA, LAMDA).advantages
    assert_close(found, torch.tensor(FROZEN["stable_baselines3"], dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_pid_of_omnisafe() -> None:
    """Multiplier by multiplier to 1e-12, from a history at the limit, which both know as no violation."""
    law = ConstraintOptimizer({"cost": Bound(1.0)}, "pid", **GAINS, delay=DELAY, smoothing=SMOOTHING)
    law.update({"cost": 1.0}, 0)
    ours = [law.update({"cost": cost}, step)["cost"] for step, cost in enumerate(COSTS, 1)]
    assert max(abs(a - b) for a, b in zip(ours, FROZEN["omnisafe"], strict=True)) < 1e-12
