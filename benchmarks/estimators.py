"""GAE and V-trace over large arrays, one thread, against the machine's memory: `python benchmarks/estimators.py`.

The limit is the time of a copy that moves as many bytes as the estimator must read and write (float32: rewards, values,
next values, log-ratios for V-trace, two flags; two results). Measured in turn: the kernels of the extra `fast`, the
plain torch path, a Python loop over time as it is usually written, and rlax under jit where .venv-bench has it (made by
`--rlax`). CPU time of the thread, best of `--rounds`. The allocator keeps freed memory (MALLOC_*), as any training
process comes to do; otherwise the kernel's zeroing of fresh pages is what is measured.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import as_a_service, best, machine, show

from midflight.services.algorithms import estimators, fast
from midflight.services.algorithms.steps import Steps

ROOT = Path(__file__).parents[1]
PEER = ROOT / ".venv-bench"
SHAPES = ((512, 2048), (64, 32768), (8, 128))
BYTES = {"gae": 22, "vtrace": 26}
GAMMA, LAMDA = 0.99, 0.95


def transitions(rows: int, length: int) -> Steps:
    """Noise, one step in a hundred terminal."""
    generator = torch.Generator().manual_seed(0)
    rewards, values, beyond, x = (torch.randn(rows, length, generator=generator) for _ in range(4))
    terminated = torch.rand(rows, length, generator=generator) < 0.01
    after = torch.where(terminated, beyond, torch.cat([values[:, 1:], beyond[:, -1:]], dim=1))
    return Steps.of(rewards, values, after, terminated, log_ratio=0.1 * x)


def gae_loop(s: Steps) -> Any:
    """A loop over time, all rows at once."""
    delta, trace = s.delta(GAMMA), s.going_on(GAMMA * LAMDA)
    out, last = torch.empty_like(delta), torch.zeros(len(delta))
    for t in range(delta.shape[1] - 1, -1, -1):
        last = delta[:, t] + trace[:, t] * last
        out[:, t] = last
    return out, out + s.values


def vtrace_loop(s: Steps) -> Any:
    """The same for V-trace."""
    kept = s.ratio.clamp(max=1.0)
    delta, trace, on = s.delta(GAMMA), s.going_on(GAMMA * LAMDA) * kept, s.going_on(GAMMA)
    out, advantages, last = torch.empty_like(delta), torch.empty_like(delta), torch.zeros(len(delta))
    for t in range(delta.shape[1] - 1, -1, -1):
        advantages[:, t] = kept[:, t] * (delta[:, t] + on[:, t] * last)
        last = kept[:, t] * delta[:, t] + trace[:, t] * last
        out[:, t] = last
    return advantages, out + s.values


LOOPS = {"gae": gae_loop, "vtrace": vtrace_loop}


def measure(shape: tuple[int, int], name: str, rounds: int) -> dict[str, Any]:
    """One line of the table, in milliseconds."""
    steps = transitions(*shape)
    ours: Callable[[Steps, float, float], Any] = getattr(estimators, name)
    source = torch.empty(steps.rewards.numel() * BYTES[name] // 2, dtype=torch.uint8)
    target = torch.empty_like(source)

    def plain() -> None:
        with mock.patch.object(fast, "_fits", return_value=False):
            ours(steps, GAMMA, LAMDA)

    found = {
        "shape": list(shape),
        "name": name,
        "copy": 1e3 * best(lambda: target.copy_(source), 4 * rounds),
        "fast": 1e3 * best(lambda: ours(steps, GAMMA, LAMDA), 4 * rounds),
        "torch": 1e3 * best(plain, rounds),
        "loop": 1e3 * best(lambda: LOOPS[name](steps), max(2, rounds // 4)),
    }
    fused = getattr(fast, name)(*([steps, GAMMA, LAMDA] + [1.0, 1.0, 1.0] * (name == "vtrace")))
    exact = LOOPS[name](steps)
    found["error"] = max(float((a - b).abs().max()) for a, b in zip(fused, exact, strict=True))
    return found


def rlax(rounds: int) -> dict[str, float]:
    """Milliseconds of rlax under jit by `name rows length`, in .venv-bench."""
    python = PEER / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
    if subprocess.run([str(python), "-c", "import rlax"], capture_output=True, check=False).returncode:
        subprocess.run([str(python), "-m", "pip", "install", "-q", "rlax==0.1.9", "jax[cpu]", "setuptools"], check=True)
    environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
    child = [str(python), str(ROOT / "benchmarks/rlax_child.py"), str(rounds), json.dumps(SHAPES)]
    done = subprocess.run(child, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times


def main() -> None:
    """Print the table and the JSON."""
    as_a_service()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rlax", action="store_true", help="make .venv-bench with rlax if need be, and measure it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(shape, name, options.rounds) for shape in SHAPES for name in BYTES]
    peers = rlax(options.rounds) if options.rlax else {}
    lines: list[tuple[str, ...]] = [("what", "copy ms", "fast / copy", "torch / copy", "loop / fast", "rlax / fast")]
    for row in rows:
        key = f"{row['name']} {row['shape'][0]} {row['shape'][1]}"
        row["rlax"] = peers.get(key)
        ratios = (row["fast"] / row["copy"], row["torch"] / row["copy"], row["loop"] / row["fast"])
        peer = f"{row['rlax'] / row['fast']:.2f}" if row["rlax"] else "-"
        lines.append((key, f"{row['copy']:.3g}", *(f"{ratio:.3g}" for ratio in ratios), peer))
    show(lines)
    print(json.dumps({"rows": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
