"""How long training waits for a checkpoint: a save in a thread against one that is waited for.

    python benchmarks/checkpoint.py [--millions M] [--rounds N]

A model of about M million float32 parameters with its AdamW state, on a disk (the temporary folder's). Each round is
one save of either kind; figures are medians of wall time, and of this thread's processor time. Last line: JSON.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from midflight.services.learner.checkpoints.saver import Saver
from midflight.services.learner.checkpoints.saving import save
from midflight.services.learner.checkpoints.snapshot import load_learner, snapshot
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer

WIDTH = 1024


def learner(millions: int) -> tuple[nn.Module, PolicyOptimizer]:
    """Linear layers of 1.05 million parameters each, after one update."""
    layers = round(millions * 1e6 / (WIDTH * WIDTH + WIDTH))
    module = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
    optimizer = PolicyOptimizer(module, OptimSettings())
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.update()
    optimizer.zero_grad()
    return module, optimizer


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    module, optimizer = learner(options.millions)
    wall: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began, used = time.perf_counter(), time.thread_time()
        yield
        wall.setdefault(name, []).append(time.perf_counter() - began)
        cpu.setdefault(name, []).append(time.thread_time() - used)

    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        root, saver = Path(folder), Saver()
        for turn in range(options.rounds):
            with timed("waited_for"):
                save(root, 2 * turn + 1, snapshot(module, optimizer), {})
            with timed("until_on_disk"):
                with timed("in_a_thread"):
                    saver.start(root, 2 * turn + 2, snapshot(module, optimizer), {}, keep=2)
                saver.take()
            with timed("load"):
                manifest = load_learner(root / f"step-{2 * turn + 2:08d}", module, optimizer)
    medians = {f"{name}_s": round(statistics.median(each), 3) for name, each in wall.items()}
    medians |= {f"{name}_cpu_s": round(statistics.median(each), 3) for name, each in cpu.items()}
    parameters = sum(parameter.numel() for parameter in module.parameters())
    size = sum(record.bytes for record in manifest.files.values())
    ratio = round(medians["waited_for_s"] / medians["in_a_thread_s"], 1)
    print(
        f"{parameters / 1e6:.1f} million parameters, {size / 1e6:.0f} MB, load {before:.1f} to {os.getloadavg()[0]:.1f}"
    )
    for name, seconds in medians.items():
        print(f"{name:20} {seconds:7.3f}")
    print(json.dumps({**medians, "ratio": ratio, "parameters": parameters, "bytes": size}))


if __name__ == "__main__":
    main()
