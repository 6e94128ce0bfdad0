"""How long a fault lasts, and how long new weights take: medians of n, in a real run of three light services.

    python benchmarks/faults.py [--n 7]

service     SIGKILL of the tracker -> its next generation is ready
kernel      SIGKILL of the kernel -> it answers, with every service heard again under its old process id
weights     state dict -> file in shared memory -> read and verified by its digest: the demo's model, and 25 MB
"""

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from common import LiveRun, live_run, machine, show

from midflight.kernel.client import Client, Unreachable
from midflight.messages.control import ServiceStatus, Status, StatusGet
from midflight.services.model.build import Build, build_model
from midflight.services.model.tokenizer import load_tokenizer
from midflight.services.model.weights import read_weights, retain, write_weights

TOPOLOGY = """
version: 1
run: bench
model: {{build: {{hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1, head_dim: 8,
                intermediate_size: 8}}}}
services:
  ledger: {{data: {{train: 'task:rev6-10?rows=64'}}, intensity: 1000}}
  rollout: {{intensity: 1000}}
  reward: {{file: {reward}, trusted: true, time_limit_s: 3600, intensity: 1000}}
  learner: {{intensity: 1000}}
  tracker: {{sinks: [], intensity: 1000, backoff_s: 0.05, backoff_max_s: 0.05}}
"""
REWARD = """
import time


def reward_fn(messages, answer):
    time.sleep(3600)
"""
"""No sample is ever scored, so every service soon waits and none is in the others' way."""
LIMITS_S = {"service": 1.0, "kernel": 1.5}
"""What an issue of midflight's promises, on this machine when it is quiet."""


def until(client: Client, good: Callable[[Status], bool], limit_s: float = 60.0) -> float:
    """Ask for the status over and over; -> seconds until it was good."""
    began = time.perf_counter()
    while time.perf_counter() - began < limit_s:
        with suppress(Unreachable):
            answer = client.ask("ctl", StatusGet(), 0.05).message
            if isinstance(answer, Status) and good(answer):
                return time.perf_counter() - began
    raise TimeoutError(f"not so within {limit_s:g} s")


def by_name(status: Status) -> dict[str, ServiceStatus]:
    """The services of a status."""
    return {line.name: line for line in status.services}


def kill_service(run: LiveRun, client: Client) -> float:
    """Seconds from SIGKILL of the tracker to its successor."""
    old = run.services()["tracker"]
    os.kill(old.pid, signal.SIGKILL)

    def replaced(status: Status) -> bool:
        new = by_name(status)["tracker"]
        return new.generation > old.generation and new.state in ("ready", "running")

    return until(client, replaced)


def kill_kernel(run: LiveRun, client: Client) -> float:
    """Seconds from SIGKILL of the kernel to one that has heard every service again."""
    before = run.status()
    pids = {name: line.pid for name, line in by_name(before).items()}
    os.kill(run.kernel_pid(), signal.SIGKILL)

    def adopted(status: Status) -> bool:
        now = by_name(status)
        heard = all(line.stats and line.state in ("ready", "running") for line in now.values())  # stats: a heartbeat
        return status.boot != before.boot and heard

    seconds = until(client, adopted)
    after = {name: line.pid for name, line in run.services().items()}
    assert after == pids, f"not re-adopted: {pids} became {after}"
    return seconds


def publication(state: dict[str, torch.Tensor], n: int) -> dict[str, float]:
    """Median milliseconds of writing a version and of reading it back, verified."""
    written, read, size = [], [], 0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for version in range(n + 1):
            began = time.perf_counter()
            handle = write_weights(Path(folder), version, state)
            middle = time.perf_counter()
            tensors = read_weights(handle)
            written.append(middle - began)
            read.append(time.perf_counter() - middle)
            size = handle.bytes
            assert tensors.keys() == state.keys()
            retain(Path(folder))
    ms = [1e3 * statistics.median(times[1:]) for times in (written, read)]
    return {"bytes": size, "write_ms": round(ms[0], 2), "read_ms": round(ms[1], 2), "both_ms": round(sum(ms), 2)}


def measure(n: int) -> dict[str, Any]:
    """All medians."""
    times: dict[str, list[float]] = {"service": [], "kernel": []}
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "never.py").write_text(REWARD)
        text = TOPOLOGY.format(reward="never.py")
        with live_run(text, Path(name)) as run, Client(run.path) as client:
            _hit(run, client, times, n)
    torch.set_num_threads(1)
    model = build_model(Build(), load_tokenizer("bytes"), seed=0)
    large = {f"layer.{i}": torch.randn(256, 1024) for i in range(25)}
    return {
        **{f"{what}_s": round(statistics.median(values), 3) for what, values in times.items()},
        **{f"{what}_worst_s": round(max(values), 3) for what, values in times.items()},
        "weights_demo": publication(model.state_dict(), 5 * n),
        "weights_25mb": publication(large, n),
        "n": n,
    }


def _hit(run: LiveRun, client: Client, times: dict[str, list[float]], n: int) -> None:
    """Kill by turns a service and the kernel."""
    run.until_ready()
    for _ in range(n):
        times["service"].append(kill_service(run, client))
        run.until_ready()
        times["kernel"].append(kill_kernel(run, client))


def main() -> None:
    """Print the table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=7)
    result = measure(parser.parse_args().n)
    rows = [(what, f"{result[f'{what}_s']} s", f"worst {result[f'{what}_worst_s']} s") for what in LIMITS_S]
    for name in ("weights_demo", "weights_25mb"):
        part = result[name]
        rows.append(
            (name, f"{part['both_ms']} ms", f"write {part['write_ms']} + read {part['read_ms']}, {part['bytes']} B")
        )
    show(rows)
    print(json.dumps({**result, "machine": machine()}))


if __name__ == "__main__":
    main()
