"""Do both engines teach the same? The demo and the tool task on the embedded engine and on SGLang's server on this CPU.

    python benchmarks/curves.py [--seeds 3] [--steps N] [--tasks demo tools] [--engines embedded sglang] [--table]

Each run is `midflight up` of the task's own topology from the warm start of its seed (benchmarks/warm.py, the same
weights for both engines, kept in build/bench), one run at a time. Told are the held-out rewards as the run itself
measured them, by the engine it trains with, and how far the engine's log-probs were from the learner's for the same
weights. Results are appended to benchmarks/curves.jsonl; what is there is not run again, and `--table` only reads it.
Seeds decide the same prompts and the same weights; what is sampled differs between engines, and between two runs of one
engine, for they are asynchronous.
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
from common import machine
from study import ROOT, metric_series, read, up, warm_start

from midflight.services.rollout.sglang.command import interpreter
from midflight.services.rollout.sglang.config import SglangConfig

RESULTS = Path(__file__).with_name("curves.jsonl")
TASKS = ("demo", "tools")
ENGINES = ("embedded", "sglang")
GAP = ("logprob_gap/mean", "logprob_gap/max", "logprob_gap/k3")
METRICS = ("reward_mean", "lag_mean", "train_s", "wait_s", *GAP)
RUN_S = 1800.0
Line = dict[str, Any]


def rollout(engine: str) -> dict[str, Any]:
    """What the topology says of it. Raises UserMistake without SGLang's environment."""
    if engine == "embedded":
        return {"device": "cpu"}
    return {"kind": "sglang", "device": "cpu", "python": interpreter(SglangConfig())}


def key(task: str, engine: str, seed: int, steps: int | None) -> str:
    """What a run is known by."""
    return f"{task} {engine} {seed}" + (f" {steps} steps" if steps else "")


def run(task: str, engine: str, seed: int, steps: int | None) -> Line:
    """One run to its end. Raises RuntimeError with its last words."""
    model = warm_start(seed, task)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        topology = {
            "extends": str(ROOT / f"configs/{task}.yaml"),
            "run": "curves",
            "seed": seed,
            "model": {"build": None, "path": str(model)},
            "services": {
                "rollout": rollout(engine),
                "learner": {
                    "sft": None,
                    "device": "cpu",
                    "last_evaluation_s": 600,
                    **({"steps": steps} if steps else {}),
                },
                "tracker": {"sinks": []},
            },
        }
        (folder / "topology.yaml").write_text(yaml.safe_dump(topology, sort_keys=False))
        cpu_s = up(folder, RUN_S)
        metrics = folder / "run/metrics.jsonl"
        held_out = evaluations(metrics)
        series = metric_series(metrics, METRICS, 12)
    return {
        "key": key(task, engine, seed, steps),
        "task": task,
        "engine": engine,
        "seed": seed,
        "held_out": held_out,
        "gap": {
            "mean": statistics.mean(series[GAP[0]]),
            "max": max(series[GAP[1]]),
            "k3": max(map(abs, series[GAP[2]])),
            "steps": len(series[GAP[0]]),
        },
        "lag": round(statistics.mean(series["lag_mean"]), 2),
        "step_s": round(statistics.median(map(sum, zip(series["train_s"], series["wait_s"], strict=True))), 3),
        "reward": [round(value, 3) for value in series["reward_mean"]],
        "cpu_s": round(cpu_s, 1),
        "load": round(os.getloadavg()[0], 1),
        "cpu": machine()["cpu"],
    }


def evaluations(metrics: Path) -> dict[int, float]:
    """Held-out reward by the step of the policy."""
    found: dict[int, float] = {}
    for text in metrics.read_text().splitlines():
        record = json.loads(text)
        if "eval/reward" in record["values"]:
            found[record["step"]] = round(record["values"]["eval/reward"], 4)
    return found


def height(line: Line) -> float:
    """Of a curve: mean held-out reward of all rounds but the first, which is the warm start's."""
    return float(statistics.mean(list(line["held_out"].values())[1:]))


def table(lines: Sequence[Line]) -> str:
    """A row a task and engine: mean over seeds at each round, the mean after the first of every seed, and the gap."""
    out = []
    for task in dict.fromkeys(line["task"] for line in lines):
        mine = [line for line in lines if line["task"] == task]
        rounds = range(min(len(line["held_out"]) for line in mine))
        steps = [list(mine[0]["held_out"])[at] for at in rounds]
        out += [
            "",
            f"| {task} | "
            + " | ".join(f"step {s}" for s in steps)
            + " | after the first, by seed | gap mean, max, k3 |",
        ]
        out.append("| --- |" + " --- |" * (len(steps) + 2))
        for engine in ENGINES:
            if theirs := [line for line in mine if line["engine"] == engine]:
                out.append(f"| {engine} | " + " | ".join([*curve(theirs, rounds), each(theirs), gap(theirs)]) + " |")
        out.append(verdict(mine))
    return "\n".join(out)


def curve(lines: Sequence[Line], rounds: range) -> list[str]:
    """Mean over seeds at each round of evaluation."""
    return [f"{statistics.mean(list(line['held_out'].values())[at] for line in lines):.2f}" for at in rounds]


def each(lines: Sequence[Line]) -> str:
    """Mean, and every seed."""
    return f"{statistics.mean(map(height, lines)):.3f} [" + " ".join(f"{height(line):.3f}" for line in lines) + "]"


def gap(lines: Sequence[Line]) -> str:
    """Of log-probs between engine and learner, nats: mean, largest, largest k3."""
    gaps = [line["gap"] for line in lines]
    largest = [max(g[name] for g in gaps) for name in ("max", "k3")]
    return ", ".join(f"{value:.1e}" for value in (statistics.mean(g["mean"] for g in gaps), *largest))


def verdict(lines: Sequence[Line]) -> str:
    """The difference of the engines' curves in height, seed by seed, and the standard error of its mean."""
    embedded, sglang = ({line["seed"]: height(line) for line in lines if line["engine"] == e} for e in ENGINES)
    apart = [sglang[seed] - embedded[seed] for seed in sorted(embedded.keys() & sglang.keys())]
    if len(apart) < 2:
        return ""
    error = statistics.stdev(apart) / math.sqrt(len(apart))
    seeds = " ".join(f"{value:+.3f}" for value in apart)
    return f"\nsglang - embedded: {statistics.mean(apart):+.3f} [{seeds}], standard error {error:.3f}"


def main() -> None:
    """Run what is missing, then tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="fewer than the topology has")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    wanted = [(t, e, s) for s in range(options.seeds) for t in options.tasks for e in options.engines]
    for task, engine, seed in () if options.table else wanted:
        if key(task, engine, seed, options.steps) in read(options.results):
            continue
        line = run(task, engine, seed, options.steps)
        with options.results.open("a") as out:
            out.write(json.dumps(line) + "\n")
        print(f"{line['key']}: {line['held_out']}, gap {line['gap']['max']:.1e}", flush=True)
    known = read(options.results)
    print(table([known[name] for one in wanted if (name := key(*one, options.steps)) in known]))


if __name__ == "__main__":
    main()
