"""Writes peers.json: what Stable-Baselines3, tianshou and omnisafe say, in float64 (Stable-Baselines3: float32).

Run where they are installed (they ask for far more than the tests do):

    pip install torch==2.13.0 stable-baselines3==2.9.2 tianshou==2.0.1 && pip install --no-deps omnisafe==0.5.0
    PYTHONPATH=.pkg:tests python tests/oracles/freeze_peers.py
"""

import importlib
import importlib.util
import json
import random
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.some_steps import some_steps

GAMMA, LAMDA = 0.97, 0.9
OUT = Path(__file__).with_name("peers.json")
COSTS = [1.0 + random.Random(4).uniform(-0.6, 1.0) * (1 + n % 7) / 7 for n in range(60)]
"""About a limit of 1."""
GAINS = {"kp": 0.3, "ki": 0.02, "kd": 0.2}
DELAY, SMOOTHING = 10, 0.9


def tianshou() -> dict[str, list[list[float]]]:
    """GAE and n-step returns of each row, with terminations and truncations inside."""
    base = importlib.import_module("tianshou.algorithm.algorithm_base")
    steps = some_steps(0)
    alive = (~steps.terminated).double() * steps.next_values
    gae = [
        base._gae(v.numpy(), vn.numpy(), r.numpy(), cut.numpy(), GAMMA, LAMDA).tolist()
        for v, vn, r, cut in zip(steps.values, alive, steps.rewards, steps.cut, strict=True)
    ]
    return {"gae": gae}


def stable_baselines() -> list[list[float]]:
    """Advantages of its rollout buffer, a row an environment; all ends terminations, the last step a time limit."""
    buffers = importlib.import_module("stable_baselines3.common.buffers")
    spaces = importlib.import_module("gymnasium.spaces")
    steps = some_steps(1)
    rows, length = steps.rewards.shape
    space = spaces.Box(-1, 1, (1,))
    buffer = buffers.RolloutBuffer(length, space, space, "cpu", LAMDA, GAMMA, rows)
    start = torch.cat([torch.ones(rows, 1, dtype=torch.bool), steps.cut[:, :-1]], dim=1)
    for t in range(length):
        observation = np.zeros((rows, 1))
        reward, first = steps.rewards[:, t].numpy(), start[:, t].numpy()
        buffer.add(observation, observation, reward, first, steps.values[:, t], torch.zeros(rows))
    ended = np.zeros(rows)
    buffer.compute_returns_and_advantage(steps.next_values[:, -1], ended)
    return [[float(x) for x in row] for row in buffer.advantages.T]


def omnisafe() -> list[float]:
    """Multipliers of its PID controller, from a history that kept the limit exactly."""
    path = distribution("omnisafe").locate_file("omnisafe/common/pid_lagrange.py")
    spec = importlib.util.spec_from_file_location("pid_lagrange", str(path))
    assert spec
    assert spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    gains = (GAINS["kp"], GAINS["ki"], GAINS["kd"])
    law = module.PIDLagrangian(*gains, DELAY, SMOOTHING, SMOOTHING, False, False, 100, 0.0, 1.0)
    law._cost_d = 1.0
    law._cost_ds[0] = 1.0
    out = []
    for cost in COSTS:
        law.pid_update(cost)
        out.append(float(law.lagrangian_multiplier))
    return out


def main() -> None:
    """Freeze all three."""
    versions = {name: version(name) for name in ("tianshou", "stable-baselines3", "omnisafe")}
    found = {"tianshou": tianshou(), "stable_baselines3": stable_baselines(), "omnisafe": omnisafe()}
    OUT.write_text(json.dumps({"versions": versions, **found}, indent=1))


if __name__ == "__main__":
    main()
