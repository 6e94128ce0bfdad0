"""Every benchmark, one table, one file: `make bench`, or

    python benchmarks/run.py [--quick] [--only NAME ...] [--out FILE]

Each runs as a process of its own, one after another, and prints its result as JSON in its last line. Figures are worth
something on a machine with nothing else to do; the load before and after is printed and kept.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import machine, show

HERE = Path(__file__).parent
SIZES: dict[str, tuple[list[str], list[str]]] = {
    "kernel": ([], ["--messages=5000", "--rounds=2"]),
    "ledger": ([], ["--samples=5000"]),
    "data": (["--formats", "jsonl", "parquet"], ["--rows=20000", "--drawn=2000", "--formats", "jsonl", "parquet"]),
    "engine": ([], ["--rounds=3"]),
    "estimators": ([], ["--rounds=3"]),
    "checkpoint": ([], ["--millions=5"]),
    "faults": ([], ["--n=2"]),
    "ranks": ([], ["--n=1"]),
    "sandbox": ([], ["--calls=100", "--burst=500", "--rounds=1"]),
    "updates": ([], ["--seconds=10"]),
    "tickets": ([], ["--samples=3200"]),
    "live": ([], ["--n=2"]),
    "tui": ([], ["--quick"]),
    "trl_peer": ([], ["--seeds=0", "--threads=1"]),
}
"""Benchmark -> its words in the standard size, and with --quick."""
SGLANG = "SGLang"
P50, P99 = "in_force_p50_ms", "in_force_p99_ms"
Pick = Callable[[dict[str, Any]], float]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: a number out of a benchmark's result, and the bound it must keep."""

    name: str
    benchmark: str
    pick: Pick
    unit: str
    target: float | None = None
    least: bool = True
    """Whether the target is a lower bound."""
    aim: float | None = None
    needs: str = ""
    """What may be missing on a machine; without it there is no figure, and no target missed."""

    def row(self, results: dict[str, Any]) -> tuple[str, ...]:
        """Name, measured, target, whether it is met."""
        try:
            value = self.pick(results[self.benchmark])
        except (KeyError, ValueError, TypeError):  # the benchmark failed, or not every seed reached its goal
            missing = bool(self.needs) and "error" not in results[self.benchmark]
            return (self.name, f"no {self.needs} here", "", "") if missing else (self.name, "no figure", "", "NO")
        if self.target is None:
            return self.name, f"{value:g} {self.unit}".rstrip(), "", ""
        met = value >= self.target if self.least else value <= self.target
        bound = f"{'>=' if self.least else '<='} {self.target:g}" + (f", aim {self.aim:g}" if self.aim else "")
        return self.name, f"{value:g} {self.unit}".rstrip(), bound, "yes" if met else "NO"


def ledger_service(result: dict[str, Any]) -> float:
    """CPU of the ledger's process a sample, microseconds, in the run that is compared with TRL."""
    return float(round(1e3 * result["cpu_ms_per_step"]["ledger"] / result["samples_per_step"], 1))


def memory(result: dict[str, Any], kind: str) -> float:
    """Peak growth of the process that reads a training set, every mapped page counted."""
    return float(round(result["formats"][kind]["peak_mb"], 1))


def estimator(result: dict[str, Any], above: str, below: str, small: bool = False, worst: Any = max) -> float:
    """The worst ratio of two times over GAE and V-trace, on the two large shapes or on the small one."""
    rows = [row for row in result["rows"] if (row["shape"][0] == 8) == small]
    return float(round(worst(row[above] / row[below] for row in rows), 2))


def in_force(result: dict[str, Any], engine: str, name: str) -> float:
    """A figure of weights that were published under generation."""
    return float(result["engines"][engine][name])


def sealed(result: dict[str, Any], name: str) -> float:
    """A figure of the strongest sandbox that works here."""
    levels = result["levels"]
    return float(round((levels.get("bwrap") or levels["namespaces"])[name], 2))


FIGURES = (
    Figure("kernel / bare echo, messages per CPU", "kernel", lambda r: r["ratio"], "", 0.45, aim=0.6),
    Figure("kernel, messages per CPU second", "kernel", lambda r: r["per_cpu_s"]["kernel"], "/s"),
    Figure("kernel, idle round trip p50", "kernel", lambda r: r["idle_p50_us"]["kernel"], "us"),
    Figure("kernel, idle round trip p99", "kernel", lambda r: r["idle_p99_us"]["kernel"], "us", 2000, least=False),
    Figure("midflight ps / its libraries alone, CPU", "kernel", lambda r: r["ps_ratio"], "", 1.5, least=False),
    Figure("ledger, core and store", "ledger", lambda r: r["us_per_sample"], "us CPU a sample", 200, False, 60),
    Figure("ledger, whole service", "trl_peer", ledger_service, "us CPU a sample", 200, False, 60),
    Figure("a million JSONL rows, memory grows by", "data", lambda r: memory(r, "jsonl"), "MB", 100, False),
    Figure("a million Parquet rows, memory grows by", "data", lambda r: memory(r, "parquet"), "MB", 100, False),
    Figure("the same, opened", "data", lambda r: round(r["formats"]["parquet"]["first_s"], 1), "s"),
    Figure("sandbox, a call, median", "sandbox", lambda r: sealed(r, "call_p50_ms"), "ms", 60, least=False),
    Figure("sandbox, trivial verdicts", "sandbox", lambda r: sealed(r, "verdicts_per_s"), "/s", 500),
    Figure("sandbox, CPU time a verdict", "sandbox", lambda r: sealed(r, "cpu_ms_per_verdict"), "ms"),
    Figure("tickets through the ledger, all processes", "tickets", lambda r: r["tickets_per_s"], "/s"),
    Figure("the same, the ledger's share", "tickets", lambda r: r["cpu_us_per_ticket"], "us CPU a ticket"),
    Figure("engine, embedded", "engine", lambda r: r["tokens_per_cpu_s"]["engine"], "tokens/CPU s"),
    Figure("engine, transformers.generate", "engine", lambda r: r["tokens_per_cpu_s"]["generate"], "tokens/CPU s"),
    Figure("engine, SGLang", "engine", lambda r: r["sglang"]["tokens_per_cpu_s"], "tokens/CPU s", needs=SGLANG),
    Figure("engine, SGLang, over HTTP", "engine", lambda r: r["sglang"]["tokens_per_s"], "tokens/s", needs=SGLANG),
    Figure("engine / generate, distinct prompts", "engine", lambda r: r["over_generate"]["engine"], "", 3),
    Figure("engine / generate, groups of 8", "engine", lambda r: r["over_generate"]["engine_groups"], "", 3),
    Figure("engine / bare matrix products", "engine", lambda r: r["over_matmul"]["engine"], ""),
    Figure("estimators, kernels / memory limit", "estimators", lambda r: estimator(r, "fast", "copy"), "", 4, False),
    Figure(
        "estimators, plain torch / memory limit", "estimators", lambda r: estimator(r, "torch", "copy"), "", 40, False
    ),
    Figure(
        "estimators, loop over time / kernels", "estimators", lambda r: estimator(r, "loop", "fast", worst=min), "", 20
    ),
    Figure("the same at 8 x 128", "estimators", lambda r: estimator(r, "loop", "fast", small=True, worst=min), "", 100),
    Figure("training waits for a checkpoint, 600 MB", "checkpoint", lambda r: r["in_a_thread_s"], "s"),
    Figure("the same, written before it goes on", "checkpoint", lambda r: r["waited_for_s"], "s"),
    Figure("service SIGKILL to replacement", "faults", lambda r: r["service_s"], "s", 1.0, least=False),
    Figure("kernel SIGKILL to all re-adopted", "faults", lambda r: r["kernel_s"], "s", 1.5, least=False),
    Figure("knob set to in force, steps (1: in training)", "live", lambda r: r["set_steps"], "", 2, least=False),
    Figure("swap of a controller, steps without one", "live", lambda r: r["swap_gap_steps"], "", 0, least=False),
    Figure("`ctl attach` to the first decision", "live", lambda r: r["attach_s"], "s", 1.0, least=False),
    Figure("promotion to its first value in force", "live", lambda r: r["promote_s"], "s"),
    Figure("least window of 2 s / mean, while all changes", "live", lambda r: r["least_window"], "", 0.5),
    Figure("weights published and read, demo", "faults", lambda r: r["weights_demo"]["both_ms"], "ms"),
    Figure("SIGKILL of a rank of two -> next trained step", "ranks", lambda r: r["kill_s"], "s"),
    Figure("the same, samples lost", "ranks", lambda r: r["issued"] - sum(r["states"].values()), "", 0, least=False),
    Figure("weights published and read, 25 MB", "faults", lambda r: r["weights_25mb"]["both_ms"], "ms"),
    Figure("weights in force under generation, p50", "updates", lambda r: in_force(r, "embedded", P50), "ms"),
    Figure("weights in force under generation, p99", "updates", lambda r: in_force(r, "embedded", P99), "ms"),
    Figure("the same of 27 MB, p50", "updates", lambda r: in_force(r, "large", P50), "ms"),
    Figure("a memcpy of 27 MB", "updates", lambda r: in_force(r, "large", "copy_ms"), "ms"),
    Figure("the same at SGLang, p50", "updates", lambda r: in_force(r, "sglang", P50), "ms", needs=SGLANG),
    Figure("the same at SGLang, p99", "updates", lambda r: in_force(r, "sglang", P99), "ms", needs=SGLANG),
    Figure("TRL / midflight, time to reward 0.7", "trl_peer", lambda r: min(r["ratio"].values()), "", 2, aim=3),
)


def run(name: str, words: list[str]) -> dict[str, Any]:
    """One benchmark's result; `error` when it failed."""
    began = time.perf_counter()
    command = [sys.executable, str(HERE / f"{name}.py"), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(f"== {name} ({time.perf_counter() - began:.0f} s)\n{done.stdout}", flush=True)
    if done.returncode:
        return {"error": f"exit {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> int:
    """Run all, print the table, write the file; exit 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, one seed: a check that all of it runs")
    parser.add_argument("--only", nargs="+", choices=list(SIZES), help="these alone; written to a file only with --out")
    parser.add_argument("--out", type=Path, help="benchmarks/results.json when all are run")
    options = parser.parse_args()
    before = machine()
    chosen = options.only or list(SIZES)
    results = {name: run(name, SIZES[name][options.quick]) for name in chosen}
    after = machine()["load"]
    rows = [figure.row(results) for figure in FIGURES if figure.benchmark in results]
    versions = ", ".join(f"{name} {version}" for name, version in before["versions"].items())
    print(f"{before['cpu']}, {before['cores']} cores, Linux {before['kernel']}, load {before['load'][0]} to {after[0]}")
    print(versions)
    show([("what", "measured", "target", "met"), *rows])
    table = [dict(zip(("name", "measured", "target", "met"), row, strict=True)) for row in rows]
    body = {"quick": options.quick, "machine": before, "load_after": after, "table": table, "results": results}
    if out := options.out or (None if options.only else HERE / "results.json"):
        out.write_text(json.dumps(body, indent=1) + "\n")
    return any(row[3] == "NO" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
