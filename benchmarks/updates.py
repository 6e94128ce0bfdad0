"""From the publication of weights to their being in force, while everything is being generated: a real run.

    python benchmarks/updates.py [--seconds 30] [--interval 0.2] [--seed 1] [--engines embedded large sglang]

A version is published every `interval` seconds by a learner that does nothing else but look at every token that comes
back (tests/support/updates_learner.py); the run fails where a token is not of the version it names. embedded: the
demo's model. large: a model of 27 MB, every second. sglang: SGLang's server on this CPU, left out without its
environment; `applied` says how often it got so far: what is published meanwhile it skips.

write     tensors to a file in shared memory, with its digest
in force  from there: told to the ledger, committed, told to the rollout, read, checked, and loaded between two tokens
copy      a memcpy of as many bytes, the least that it could cost
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

from common import machine, percentile, show

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.updates_config import HERE
from support.updates_run import Outcome, soak, topology

from midflight.kernel.mistake import UserMistake
from midflight.services.rollout.sglang import command
from midflight.services.rollout.sglang.config import SglangConfig

COPIES = 30
LARGE = {
    "hidden_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "head_dim": 64,
    "intermediate_size": 1152,
}
ENGINES: dict[str, dict[str, dict[str, Any]]] = {
    "embedded": {},
    "large": {"model": LARGE, "learner": {"interval_s": 1.0}},
    "sglang": {
        "rollout": {"kind": f"{HERE}:WatchedSglangConfig", "device": "cpu"},
        "learner": {"attends": True},
        "ledger": {"version_slack": 1000},
    },
}
"""What each differs in from the soak's topology. SGLang is behind most of the time when it is offered five a second."""


def copy_ms(size: int) -> float:
    """Milliseconds of copying so many bytes, median."""
    source, target, times = memoryview(bytearray(os.urandom(size))), memoryview(bytearray(size)), []
    for _ in range(COPIES):
        began = time.perf_counter()
        target[:] = source
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def measure(engine: str, seconds: float, interval: float, seed: int) -> dict[str, Any]:
    """One run. Raises RuntimeError where a promise was broken."""
    changes = dict(ENGINES[engine])
    changes["learner"] = {"interval_s": interval, **changes.get("learner", {})}
    if engine == "sglang":
        changes["rollout"] = {**changes["rollout"], "python": command.interpreter(SglangConfig())}
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), topology(seed, seconds, **changes))
    if found.problems:
        raise RuntimeError(f"{engine}: {found.problems}")
    return figures(found)


def figures(found: Outcome) -> dict[str, Any]:
    """Of a run that kept its promises."""
    copy = copy_ms(found.bytes)
    return {
        "bytes": found.bytes,
        "published": found.verdict["published"] + 1,
        "applied": found.applied,
        "tokens": found.verdict["tokens"],
        "largest_gap": found.verdict["gap"],
        "write_ms": round(statistics.median(found.write_ms), 2),
        "in_force_p50_ms": round(percentile(found.latency_ms, 0.5), 1),
        "in_force_p99_ms": round(percentile(found.latency_ms, 0.99), 1),
        "copy_ms": round(copy, 3),
        "over_copy": round(percentile(found.latency_ms, 0.5) / copy, 1),
        "tokens_per_s": round(found.tokens_per_s),
        "interval_s": round(found.span_s / max(1, found.applied - 1), 2),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Print the table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--interval", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    options = parser.parse_args()
    engines = list(options.engines)
    try:
        command.interpreter(SglangConfig())
    except UserMistake:
        engines = [engine for engine in engines if engine != "sglang"]
    results = {engine: measure(engine, options.seconds, options.interval, options.seed) for engine in engines}
    names = list(next(iter(results.values())))
    show([("", *engines), *((name, *(f"{results[engine][name]:g}" for engine in engines)) for name in names)])
    print(json.dumps({"engines": results, "machine": machine()}))


if __name__ == "__main__":
    main()
