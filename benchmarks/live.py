"""What changing a run while it goes on costs, in a real demo run: medians of n, read from its own journal.

    python benchmarks/live.py [--n 5] [--window 2.0]

set       a knob is set -> the step from which it is in force, counted from the newest step that was done
swap      training steps without a decision while the KL controller is replaced, and seconds until it is in force
attach    `ctl attach` is entered -> the first decision of the controller it starts, also as a multiple of `start`
start     a Python process that only imports what that verb imports, beside the same run
promote   the kernel promotes it -> the first value of its own is in force
window    steps trained in the least window against the mean, over all of this, and while rollouts go from one to three

Steps are 0.1 s in the demo, so what waits for the next one has that to wait.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from common import LiveRun, live_run, machine, show

from midflight.kernel.client import Client
from midflight.kernel.journal_files import read_events
from midflight.kernel.watching import follow
from midflight.messages.events import Event

VERB = [sys.executable, "-P", "-m", "midflight.kernel.cli.main"]
TOPOLOGY = f"extends: {Path(__file__).parents[1] / 'configs' / 'demo.yaml'}\n"
WORDS = ("services.learner.steps=1000000", "services.learner.sft.steps=100", "services.tracker.sinks=[]")
Record = dict[str, Any]


def verb(run: LiveRun, *words: str) -> None:
    """One command, as a person types it."""
    done = subprocess.run([*VERB, *words, "--run", str(run.path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")


def after(run: LiveRun, matches: str, source: str = "", since: int = 0) -> Event:
    """The first event of a topic, from a source that begins so."""
    with Client(run.path) as client:
        for event in follow(client, since, 60.0):
            if event.topic == matches and event.source.startswith(source):
                return event
    raise SystemExit(f"no {matches} of {source}")


def started() -> float:
    """Seconds a process takes that only imports what `ctl attach` does."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-P", "-c", "import midflight.kernel.cli.ctl_attach"], check=True)
    return time.monotonic() - began


def newest(run: LiveRun) -> int:
    """Number of the newest event."""
    return run.status().seq


def act(run: LiveRun, n: int) -> Iterator[float]:
    """Everything, n times; the start of each `ctl attach`, wall clock seconds."""
    for turn in range(n):
        verb(run, "set", f"optim.lr={(3 + turn % 2) * 1e-4}")
        law = ("pid", "exponential")[turn % 2]
        verb(run, "swap", "kl", "--with", "kl", f"controller_type={law}", "--probation", "0.5")
        since, name = newest(run), f"shadow{turn}"
        began = time.time()
        verb(run, "ctl", "attach", "kl", "--slot", "kl", "--shadow", "--name", name, "-d")
        after(run, "controller", f"{name}#", since)
        yield began
        verb(run, "ctl", "promote", name)
        after(run, "knob.applied", since=newest(run))
        verb(run, "ctl", "detach", name)


def set_steps(events: list[Record]) -> list[int]:
    """Steps from the newest one done to the one from which a person's value holds; 1 is the very next."""
    done, waiting, out = 0, {}, []
    for event in events:
        body = event["body"]
        if event["topic"] == "metrics":
            done = event["step"]
        elif event["topic"] == "knob" and body["author"] == "operator":
            waiting[body["knob"], body["version"]] = done
        elif event["topic"] == "knob.applied" and (body["knob"], body["version"]) in waiting:
            out.append(body["step"] - waiting[body["knob"], body["version"]])
    return out


def undecided(events: list[Record]) -> list[int]:
    """Training steps, from the first decision to the last, that no value of `kl.coef` was set for."""
    decided = {
        int(event["body"]["reason"].split("step ")[1].split(",")[0])
        for event in events
        if event["topic"] == "knob" and event["body"]["knob"] == "kl.coef" and "step " in event["body"]["reason"]
    }
    return sorted(set(range(min(decided), max(decided) + 1)) - decided)


def seconds(events: list[Record], begin: str, end: str) -> list[float]:
    """From each swap's stage to another."""
    at = {(e["body"]["number"], e["body"]["stage"]): e["ns"] for e in events if e["topic"] == "swap"}
    return [(at[number, end] - ns) / 1e9 for (number, stage), ns in at.items() if stage == begin]


def promoted(events: list[Record]) -> list[float]:
    """Seconds from each promotion to the first value of the promoted one in force."""
    out, began, version = [], None, None
    for event in events:
        body = event["body"]
        if event["topic"] == "controller.promoted":
            began, owner, version = event["ns"], body["to"], None
        elif began and event["topic"] == "knob" and body["author"] == owner and version is None:
            version = body["version"]
        elif began and event["topic"] == "knob.applied" and version is not None and body["version"] >= version:
            out.append((event["ns"] - began) / 1e9)
            began = None
    return out


def attached(events: list[Record], starts: list[float]) -> list[float]:
    """Seconds from each `ctl attach` to the first decision of what it attached."""
    first: dict[str, float] = {}
    for event in events:
        if event["topic"] == "controller" and event["source"].startswith("shadow"):
            first.setdefault(event["source"], event["ns"] / 1e9)
    return [decided - began for decided, began in zip(first.values(), starts, strict=True)]


def windows(events: list[Record], begin: float, end: float, window_s: float) -> list[int]:
    """Training steps in each window."""
    counts = [0] * int((end - begin) // window_s)
    for event in events:
        at = int((event["ns"] / 1e9 - begin) // window_s)
        if event["topic"] == "metrics" and 0 <= at < len(counts):
            counts[at] += 1
    return counts


def measure(n: int, window_s: float) -> Record:
    """All of it."""
    with tempfile.TemporaryDirectory() as name, live_run(TOPOLOGY, Path(name), *WORDS) as run:
        after(run, "metrics")
        began = time.time()
        starts = list(act(run, n))
        acted = time.time()
        verb(run, "service", "scale", "rollout", "3")
        verb(run, "service", "scale", "rollout", "1")
        scaled = time.time()
        start = statistics.median(started() for _ in range(n))
        events = list(read_events(run.path))
    changes, scale = windows(events, began, acted, window_s), windows(events, acted, scaled, window_s)
    attach = statistics.median(attached(events, starts))
    return {
        "set_steps": statistics.median(set_steps(events)),
        "set_steps_worst": max(set_steps(events)),
        "swap_gap_steps": len(undecided(events)),
        "swap_in_force_s": round(statistics.median(seconds(events, "starting", "probation")), 3),
        "attach_s": round(attach, 3),
        "start_s": round(start, 3),
        "attach_over_start": round(attach / start, 2),
        "attach_worst_s": round(max(attached(events, starts)), 3),
        "promote_s": round(statistics.median(promoted(events)), 3),
        "least_window": round(min(changes + scale) / statistics.mean(changes + scale), 2),
        "scaling_over_changes": round(statistics.mean(scale) / statistics.mean(changes), 2),
        "windows": changes,
        "windows_scaling": scale,
        "window_s": window_s,
        "n": n,
    }


def main() -> None:
    """Print the table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--window", type=float, default=2.0)
    options = parser.parse_args()
    result = measure(options.n, options.window)
    show([(name, str(value)) for name, value in result.items() if not isinstance(value, list)])
    print(json.dumps({**result, "machine": machine()}))


if __name__ == "__main__":
    main()
