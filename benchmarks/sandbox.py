"""What containing reward code costs: the time of a call at each level, and trivial verdicts a second. One command:

    python benchmarks/sandbox.py [--calls 300] [--burst 3000] [--rounds 3]

"call" is one job at a time, submit to verdict; verdicts a second come from many at once over as many workers as cores;
"start" is an empty pool to its first verdict. Those are wall clock and want a quiet machine. Beside them stand what a
busy one changes less: CPU time a verdict, of the pool and all that is inside, and a bare fork of an interpreter that
has imported no more than a sandbox does, measured in turn with each level. Aims: a call in 60 ms, 500 verdicts a
second.
"""

import argparse
import json
import os
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, percentile

from midflight.services.reward import Job, Pool, Scored, Spec
from midflight.services.reward.sandbox.ladder import missing
from midflight.services.reward.sandbox.levels import LOCAL, SEALED

TRIVIAL = "def reward_fn(messages, answer): return float(messages[-1]['content'] == answer)\n"


FORKS = """
import os, resource, statistics, sys, time
import json, asyncio, contextlib, ctypes, faulthandler, inspect, select, shutil, signal
took = []
begun_with = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
for _ in range(int(sys.argv[1])):
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    took.append(1e3 * (time.perf_counter() - began))
used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(statistics.median(took), 1e3 * (used - begun_with) / len(took))
"""


def bare_fork(times: int) -> tuple[float, float]:
    """Milliseconds of a fork of a small interpreter that ends at once, and its reaping: median wall, mean CPU time."""
    done = subprocess.run([sys.executable, "-I", "-c", FORKS, str(times)], capture_output=True, check=True)
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


def cpu_s() -> float:
    """CPU seconds of this process and of all that it, and what is inside its sandboxes, has reaped."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


class Served:
    """A pool and its loop."""

    def __init__(self, folder: Path, level: str, workers: int) -> None:
        file = folder / "rewards.py"
        file.write_text(TRIVIAL)
        self.pool = Pool(Spec(file, scratch=folder, level=level), workers)
        self._poller = select.poll()
        self._poller.register(self.pool.fileno(), select.POLLIN)
        self._next = 0

    def score(self, jobs: int) -> float:
        """Milliseconds from the submission of so many jobs to their last verdict."""
        began = time.perf_counter()
        for _ in range(jobs):
            self.pool.submit(Job(self._next, [{"role": "assistant", "content": "4"}], "4"))
            self._next += 1
        due = jobs
        while due:
            verdicts = self.pool.tick(time.monotonic())
            assert all(isinstance(verdict.outcome, Scored) for verdict in verdicts), verdicts
            due -= len(verdicts)
            if due:
                self._poller.poll(100)
        return 1e3 * (time.perf_counter() - began)


def measure(level: str, calls: int, burst: int) -> dict[str, float]:
    """One round at one level."""
    with tempfile.TemporaryDirectory() as folder:
        served = Served(Path(folder), level, 1)
        start = served.score(1)
        served.score(20)
        one_by_one = [served.score(1) for _ in range(calls)]
        served.pool.close()
    begun = cpu_s()
    with tempfile.TemporaryDirectory() as folder:
        served = Served(Path(folder), level, os.cpu_count() or 1)
        served.score(100)
        took = served.score(burst)
        served.pool.close()
        few = cpu_s()
    with tempfile.TemporaryDirectory() as folder:  # the same without the burst, for what starting costs
        served = Served(Path(folder), level, os.cpu_count() or 1)
        served.score(100)
        served.pool.close()
        start_cpu = cpu_s() - few
    fork_wall, fork_cpu = bare_fork(calls)
    return {
        "start_ms": start,
        "call_p50_ms": statistics.median(one_by_one),
        "call_p95_ms": percentile(one_by_one, 0.95),
        "verdicts_per_s": 1e3 * burst / took,
        "cpu_ms_per_verdict": 1e3 * (few - begun - start_cpu) / burst,
        "fork_p50_ms": fork_wall,
        "fork_cpu_ms": fork_cpu,
    }


def main() -> None:
    """Measure, print a table, then the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--burst", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    lacks = {level: missing(level) if level in SEALED else "" for level in LOCAL}
    rounds: dict[str, list[dict[str, float]]] = {level: [] for level, why in lacks.items() if not why}
    for _ in range(arguments.rounds):  # in turn, for the machine's load changes
        for level, results in rounds.items():
            results.append(measure(level, arguments.calls, arguments.burst))
    levels = {
        level: {name: round(statistics.median(one[name] for one in results), 3) for name in results[0]}
        for level, results in rounds.items()
    }
    print(f"{'level':12}" + "".join(f"{name:>20}" for name in next(iter(levels.values()))))
    for level, figures in levels.items():
        print(f"{level:12}" + "".join(f"{value:20g}" for value in figures.values()))
    for level, why in lacks.items():
        if why:
            print(f"{level:12}{why}")
    print(json.dumps({"machine": machine(), "levels": levels, "lacks": {k: v for k, v in lacks.items() if v}}))


if __name__ == "__main__":
    main()
