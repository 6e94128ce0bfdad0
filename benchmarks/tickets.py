"""Tickets a second through the real ledger: issued, generated, scored, batched, trained, committed. One command:

    python benchmarks/tickets.py [--samples 12800]

The ledger, the kernel and the warden are the real ones, as processes, with everything they send and store; what
generates, scores and trains answers at once (tests/support/chaos_services.py), so it is the ledger that is waited for,
or whoever else of the run is slowest. CPU is that of the ledger's process alone, over the whole run.
"""

import argparse
import contextlib
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from common import cpu_seconds, machine, show

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.chaos_run import BATCH, ChaosRun

RUN_S = 600.0
LOOK_S = 0.05
AT_ONCE = {"work_s": 0.0, "slots": 256}


def watch(run: ChaosRun) -> Iterator[float]:
    """CPU seconds of the ledger, again and again, until the run is over. Raises TimeoutError."""
    deadline = time.monotonic() + RUN_S
    while not run.over(LOOK_S):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not over after {RUN_S:g} s")
        if stat := run.process("ledger"):
            with contextlib.suppress(OSError):
                yield cpu_seconds(stat.pid)


def measure(samples: int) -> dict[str, Any]:
    """One run. Raises RuntimeError when its account is wrong."""
    slots = {"rollout": AT_ONCE, "reward": AT_ONCE, "ledger": {"lease_s": 30.0, "max_staleness": 4}}
    with tempfile.TemporaryDirectory() as name, ChaosRun(Path(name), samples, slots) as run:
        cpu = max(watch(run))
        account = run.account(RUN_S)
        with contextlib.closing(sqlite3.connect(run.dir / "ledger.sqlite")) as db:
            ended, moves = db.execute("select max(at_ns), count(*) from life").fetchone()
            began = db.execute("select min(at_ns) from life where state = 'running'").fetchone()[0]
    if account.problems:
        raise RuntimeError(str(account.problems))
    seconds = (ended - began) / 1e9
    return {
        "samples": samples,
        "seconds": round(seconds, 2),
        "tickets_per_s": round(samples / seconds),
        "moves_per_s": round(moves / seconds),
        "cpu_us_per_ticket": round(1e6 * cpu / samples),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Print the table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=12_800, help=f"a multiple of {BATCH}")
    options = parser.parse_args()
    result = measure(options.samples)
    show([(name, f"{value:g}") for name, value in result.items()])
    print(json.dumps({**result, "machine": machine()}))


if __name__ == "__main__":
    main()
