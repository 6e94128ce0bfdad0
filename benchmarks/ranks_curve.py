"""Does a learner of two ranks teach the same? The demo on one process and on two gloo ranks, held-out accuracy a round.

    python benchmarks/ranks_curve.py [--seeds 2] [--ranks 1 2] [--steps 120]

Each run is `midflight up configs/demo.yaml` from the warm start of its seed (benchmarks/warm.py, the same weights for
both), one run at a time. Told are the held-out accuracies that the run itself measures, at the same steps, the mean
over seeds of their difference, and the standard error of that. Runs are asynchronous, so that two of the same seed and
ranks differ, too; `--again` runs every cell twice and tells by how much. Results are appended to
benchmarks/ranks_curve.jsonl; what is there is not run again.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from common import machine, show
from curves import evaluations
from study import ROOT, metric_series, read, up, warm_start

RESULTS = Path(__file__).with_name("ranks_curve.jsonl")
RUN_S = 1800.0
Line = dict[str, Any]


def run(ranks: int, seed: int, steps: int, turn: int) -> Line:
    """One run to its end. Raises RuntimeError with its last words."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        topology = {
            "extends": str(ROOT / "configs/demo.yaml"),
            "run": "ranks",
            "seed": seed,
            "model": {"build": None, "path": str(warm_start(seed))},
            "services": {
                "rollout": {"device": "cpu"},
                "learner": {"sft": None, "device": "cpu", "steps": steps, "ranks": ranks, "last_evaluation_s": 600},
                "tracker": {"sinks": []},
            },
        }
        (folder / "topology.yaml").write_text(yaml.safe_dump(topology, sort_keys=False))
        before = os.getloadavg()[0]
        cpu_s = up(folder, RUN_S)
        metrics = folder / "run/metrics.jsonl"
        series = metric_series(metrics, ("reward_mean", "train_s"))
        return {
            "key": key(ranks, seed, steps, turn),
            "ranks": ranks,
            "seed": seed,
            "held_out": evaluations(metrics),
            "reward": [round(value, 3) for value in series["reward_mean"]],
            "train_s": round(statistics.median(series["train_s"]), 3),
            "cpu_s": round(cpu_s, 1),
            "load": [round(before, 1), round(os.getloadavg()[0], 1)],
            "cpu": machine()["cpu"],
        }


def key(ranks: int, seed: int, steps: int, turn: int) -> str:
    """What a run is known by."""
    return f"{ranks} ranks, seed {seed}, {steps} steps, {turn}"


def differences(one: Sequence[Line], other: Sequence[Line]) -> list[tuple[str, ...]]:
    """A row each round: means, the mean difference over seeds, its standard error."""
    rows = []
    for step in one[0]["held_out"]:
        pairs = [(a["held_out"][step], b["held_out"][step]) for a, b in zip(one, other, strict=True)]
        rows.append(_row(f"step {step}", pairs))
    rows.append(_row("mean after the first", [(_height(a), _height(b)) for a, b in zip(one, other, strict=True)]))
    return rows


def _height(line: Line) -> float:
    return float(statistics.mean(list(line["held_out"].values())[1:]))


def _row(name: str, pairs: Sequence[tuple[float, float]]) -> tuple[str, ...]:
    apart = [b - a for a, b in pairs]
    error = statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
    means = [statistics.mean(side) for side in zip(*pairs, strict=True)]
    return name, *(f"{mean:.3f}" for mean in means), f"{statistics.mean(apart):+.3f}", f"{error:.3f}"


def main() -> None:
    """Run what is missing, print the table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, nargs=2, default=(1, 2))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--again", action="store_true", help="every run twice")
    options = parser.parse_args()
    known = {name: _whole(line) for name, line in read(RESULTS).items()}
    cells = [
        (ranks, seed, turn)
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for turn in range(1 + options.again)
        for ranks in options.ranks
    ]
    for ranks, seed, turn in cells:
        name = key(ranks, seed, options.steps, turn)
        if name not in known:
            known[name] = line = run(ranks, seed, options.steps, turn)
            with RESULTS.open("a") as out:
                out.write(json.dumps(line) + "\n")
        held_out = " ".join(f"{value:.3f}" for value in known[name]["held_out"].values())
        print(f"{name}: {held_out}; load {known[name]['load']}", flush=True)
    chosen = {name: known[key(*name[:2], options.steps, name[2])] for name in cells}
    sides = [[line for (ranks, _, _), line in chosen.items() if ranks == side] for side in options.ranks]
    head = ("", *(f"{side} ranks" for side in options.ranks), "difference", "standard error")
    rows = differences(*sides)
    show([head, *rows])
    if options.again:
        same = [line for side in sides for line in side]
        show([("", "first", "again", "difference", "standard error"), *differences(same[::2], same[1::2])[-1:]])
    print(json.dumps({"rows": rows, "machine": machine()}))


def _whole(line: Line) -> Line:
    """JSON's keys are texts."""
    return {**line, "held_out": {int(step): value for step, value in line["held_out"].items()}}


if __name__ == "__main__":
    main()
