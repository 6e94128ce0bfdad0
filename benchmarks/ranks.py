"""How long a learner of two ranks is away when one of them is killed: the demo on two ranks, killed again and again.

    python benchmarks/ranks.py [--n 5] [--hosts 2]

kill        SIGKILL of rank 1, in the middle of a run -> the next step is trained, by a whole new group from the newest
            checkpoint; median and worst of n
restart     of that, until the learner's next process is there
samples     afterwards, how many are in each state, and whether the ledger balances

With `--hosts 2` rank 1 belongs to a `midflight join` beside the run, in a folder of its own.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import LOOK_S, LiveRun, live_run, machine, show

from midflight.kernel.process import processes

ROOT = Path(__file__).parents[1]
TOPOLOGY = """
extends: {demo}
run: ranks
services:
  ledger: {{data: {{evaluation: null}}, prompts_per_rollout: 8, responses_per_prompt: 4}}
  learner:
    ranks: 2
    hosts: {hosts}
    meet: 127.0.0.1
    device: cpu
    steps: 100000
    checkpoint_every: 4
    sft: {{steps: 20, batch_size: 16}}
    intensity: 1000
  tracker: {{sinks: []}}
"""
VERB = [sys.executable, "-P", "-m", "midflight.kernel.cli.main"]
LIMIT_S = 120.0
STEPS_BETWEEN = 6
Record = dict[str, Any]


def until(found: Callable[[], Any], what: str) -> Any:
    """The first true value. Raises TimeoutError."""
    deadline = time.monotonic() + LIMIT_S
    while not (value := found()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {LIMIT_S:g} s")
        time.sleep(LOOK_S)
    return value


def follower(folder: Path) -> int:
    """The process of rank 1 of the run in `folder`; 0 while there is none."""
    ours = f"MIDFLIGHT_RUN_DIR={folder}/".encode()
    for stat in processes():
        if stat.state == "Z" or b"learner.group.follower" not in _said(stat.pid, "cmdline"):
            continue
        if ours in _said(stat.pid, "environ"):
            return stat.pid
    return 0


def _said(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


def steps(run: LiveRun, since: float = 0.0) -> list[Record]:
    """Records of training steps after a moment (wall clock, s)."""
    try:
        text = (run.path / "metrics.jsonl").read_text()
    except OSError:
        return []
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [one for one in lines if "event" not in one and "policy_loss" in one["values"] and one["ts"] > since]


def kill(run: LiveRun) -> tuple[float, float]:
    """Kill rank 1; -> seconds to the next trained step, and of these to the learner's next process."""
    seen = steps(run)[-1]["ts"] if steps(run) else 0.0
    until(lambda: len(steps(run, seen)) >= STEPS_BETWEEN, "steps")
    old, began = run.services()["learner"].generation, time.time()
    os.kill(until(lambda: follower(run.path.parent), "rank 1"), signal.SIGKILL)

    def replaced() -> bool:
        return run.services()["learner"].generation > old

    until(replaced, "new learner")
    restarted = time.time()
    first = until(lambda: steps(run, restarted), "step")[0]
    return first["ts"] - began, restarted - began


@contextmanager
def elsewhere(folder: Path, hosts: int) -> Iterator[None]:
    """The other host, if there is one."""
    if hosts == 1:
        yield
        return
    command = [*VERB, "join", str(folder / "run/learner.ticket"), "--dir", "ranks"]
    (folder / "elsewhere").mkdir()
    process = subprocess.Popen(command, cwd=folder / "elsewhere", stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def measure(n: int, hosts: int) -> Record:
    """Kill n times."""
    text = TOPOLOGY.format(demo=ROOT / "configs/demo.yaml", hosts=hosts)
    with tempfile.TemporaryDirectory() as name, elsewhere(Path(name), hosts), live_run(text, Path(name)) as run:
        found = [kill(run) for _ in range(n)]
        subprocess.run([*VERB, "down", "--run", str(run.path)], check=True, capture_output=True)
        told = subprocess.run([*VERB, "ledger", "--run", str(run.path), "--json"], capture_output=True, text=True)
        ledger = json.loads(told.stdout)
    seconds, restarts = zip(*found, strict=True)
    return {
        "kill_s": round(statistics.median(seconds), 2),
        "kill_worst_s": round(max(seconds), 2),
        "restart_s": round(statistics.median(restarts), 2),
        "balanced": told.returncode == 0,
        "states": ledger["states"],
        "issued": ledger["issued"],
        "n": n,
        "hosts": hosts,
    }


def main() -> None:
    """Print the table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--hosts", type=int, default=1, choices=(1, 2))
    options = parser.parse_args()
    result = measure(options.n, options.hosts)
    states = ", ".join(f"{count} {state}" for state, count in result["states"].items())
    show(
        [
            ("SIGKILL of rank 1 -> next step", f"{result['kill_s']} s", f"worst {result['kill_worst_s']} s"),
            ("of that, until the next learner's process", f"{result['restart_s']} s", ""),
            (f"{result['issued']} samples", states, "balanced" if result["balanced"] else "NOT BALANCED"),
        ]
    )
    print(json.dumps({**result, "machine": machine()}))


if __name__ == "__main__":
    main()
