"""rlax's GAE and V-trace under jit and vmap, for `estimators.py`: `rlax_child.py ROUNDS SHAPES`, where jax is.

Prints milliseconds of CPU time of the process by `name rows length`: with one thread allowed that is what it costs.
"""

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import rlax


def gae(r: Any, discount: Any, values: Any, x: Any) -> Any:
    """Advantages and returns, as ours."""
    advantages = rlax.truncated_generalized_advantage_estimation(r, discount, 0.95, values)
    return advantages, advantages + values[:-1]


def vtrace(r: Any, discount: Any, values: Any, x: Any) -> Any:
    """Policy-gradient advantages and errors."""
    return rlax.vtrace_td_error_and_advantage(values[:-1], values[1:], r, discount, jnp.exp(x), 0.95)


def main(rounds: int, shapes: list[list[int]]) -> None:
    """Time both."""
    out = {}
    for rows, length in shapes:
        keys = jax.random.split(jax.random.PRNGKey(0), 4)
        r, x = (jax.random.normal(key, (rows, length)) for key in keys[:2])
        values = jax.random.normal(keys[2], (rows, length + 1))
        discount = 0.99 * (jax.random.uniform(keys[3], (rows, length)) > 0.01)
        for name, function in (("gae", gae), ("vtrace", vtrace)):
            run = jax.jit(jax.vmap(function))
            jax.block_until_ready(run(r, discount, values, 0.1 * x))
            times = []
            for _ in range(rounds):
                began = time.process_time_ns()
                jax.block_until_ready(run(r, discount, values, 0.1 * x))
                times.append(time.process_time_ns() - began)
            out[f"{name} {rows} {length}"] = min(times) / 1e6
    print(json.dumps(out))


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
