"""Writes rlax.json: what rlax says of random steps, in float64. Run where rlax is installed:

    JAX_ENABLE_X64=1 PYTHONPATH=.pkg:tests python tests/oracles/freeze_rlax.py

rlax is no dependency of the tests: it asks for a nightly build of tensorflow-probability, which cannot be pinned.
"""

import importlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from support.some_steps import some_steps

from midflight.services.algorithms.steps import Steps

GAMMA, LAMDA = 0.97, 0.9
OUT = Path(__file__).with_name("rlax.json")


def of_row(rlax: Any, jnp: Any, steps: Steps, row: int) -> dict[str, list[float]]:
    """Every estimator of one row."""
    r, v = (jnp.asarray(x[row].numpy()) for x in (steps.rewards, steps.values))
    vn = jnp.asarray(steps.bootstrap[row].numpy())
    rho, discount = jnp.asarray(steps.ratio[row].numpy()), GAMMA * (1.0 - jnp.asarray(steps.cut[row].numpy()))
    both = jnp.append(v, vn[-1])
    out = {
        "gae": rlax.truncated_generalized_advantage_estimation(r, discount, LAMDA, both),
        "td_lambda": rlax.lambda_returns(r, discount, vn, LAMDA),
        "n_step": rlax.n_step_bootstrapped_returns(r, discount, vn, 3),
    }
    traced = rlax.vtrace_td_error_and_advantage(v, vn, r, discount, rho, 1.0)
    out |= {"vtrace_errors": traced.errors, "vtrace_advantages": traced.pg_advantage}
    out["vtrace_lambda"] = rlax.vtrace(v, vn, r, discount, rho, LAMDA)
    out["retrace"] = rlax.retrace_continuous(v, v[1:], vn, r, discount, jnp.log(rho[1:]), LAMDA)
    return {name: [float(x) for x in value] for name, value in out.items()}


def ended_steps() -> Steps:
    """Random steps whose ends are all terminations: rlax tells one from the other by a discount of 0 only."""
    steps = some_steps(0)
    return Steps.of(steps.rewards, steps.values, steps.next_values, steps.cut, None, steps.log_ratio)


def main() -> None:
    """Freeze three rows."""
    rlax, jnp = importlib.import_module("rlax"), importlib.import_module("jax.numpy")
    steps = ended_steps()
    rows = [of_row(rlax, jnp, steps, row) for row in range(len(steps.rewards))]
    OUT.write_text(json.dumps({"rlax": version("rlax"), "jax": version("jax"), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
