"""Servers, their parts, the router and published weights hit at random moments of a whole run; five seeds."""

import contextlib
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from support.e2e_run import LOOK_S, Up, flip_bit, hit, is_step, midflight, nothing_left, records, samples, tiny
from support.sglang_fleet import ask

from midflight.kernel.process import marked_processes
from midflight.kernel.rundir import shm_path
from midflight.services.model.weights import PATTERN

FAULTS = (
    "kill a server",
    "kill a part of a server",
    "stop a server",
    "stop a part of a server",
    "kill the router",
    "stop the router",
    "corrupt a publication",
)
GOES_ON_S = 900.0
STOP_S = 5.0
OVER = """
extends: {base}
run: chaos
services:
  rollout:
    {{kind: sglang, device: cpu, python: {python}, servers: 2, router: true, stall_s: 10, start_timeout_s: 900,
      heartbeat_timeout_s: 30, intensity: 100}}
  learner: {{checkpoint_every: 100, heartbeat_timeout_s: 30}}
"""


def routers(run_id: str) -> list[int]:
    """The process that leads each router."""
    return [pid for pid in leaders(run_id) if b"sglang::router" in cmdline(pid)]


def servers(run_id: str) -> list[int]:
    """The process that leads each server that answers: a start has a limit of its own."""
    found = []
    for pid in leaders(run_id):
        words = cmdline(pid).split(b"\0")
        if b"sglang.launch_server" in words:
            port = words[words.index(b"--port") + 1].decode()
            if ask(f"http://127.0.0.1:{port}/ready", 10.0) == 200:
                found.append(pid)
    return found


def leaders(run_id: str) -> list[int]:
    """What leads a process group of its own among the processes of the rollout."""
    found = []
    for stat in marked_processes(run_id, "rollout"):
        with contextlib.suppress(OSError):
            if os.getpgid(stat.pid) == stat.pid:
                found.append(stat.pid)
    return sorted(found)


def cmdline(pid: int) -> bytes:
    """Of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def group(leader: int) -> list[int]:
    """The members of its process group but itself."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and os.getpgid(int(entry)) == leader != int(entry):
                found.append(int(entry))
    return sorted(found)


def corrupt(up: Up) -> bool:
    """Flip a bit of the next version that is published, before the rollout, stopped for that, has read it.

    The learner is stopped first, so that a batch waits for it. When it publishes nothing all the same, the run takes a
    step before this is tried again: stopped over and over, a rollout gets nothing done.
    """
    folder = shm_path(up.run_id())
    hit(up, "learner", signal.SIGSTOP)
    up.ended(STOP_S)
    hit(up, "rollout", signal.SIGSTOP)
    before = set(folder.glob(PATTERN))
    hit(up, "learner", signal.SIGCONT)
    try:
        deadline = time.monotonic() + STOP_S
        while time.monotonic() < deadline:
            if new := set(folder.glob(PATTERN)) - before:
                flip_bit(new.pop())
                return True
            up.ended(LOOK_S)
    finally:
        hit(up, "rollout", signal.SIGCONT)
    progress(up, 1)
    return False


def strike(up: Up, fault: str, rng: random.Random) -> bool:
    """Whether there was something to hit."""
    if fault == "corrupt a publication":
        return corrupt(up)
    found = (routers if "router" in fault else servers)(up.run_id())
    if not found:
        return False
    leader = rng.choice(found)
    parts = group(leader)
    signum = signal.SIGKILL if fault.startswith("kill") else signal.SIGSTOP
    victims = [rng.choice(parts)] if "part" in fault and parts else [leader, *parts]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)
    return True


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(5))
def test_faults_at_random_moments(python: str, tmp_path: Path, seed: int) -> None:
    """Every fault once, in random order, some close together: steps go on, each once, and no sample is lost."""
    rng = random.Random(seed)
    order = rng.sample(FAULTS, len(FAULTS))
    topology = tmp_path / "chaos.yaml"
    topology.write_text(OVER.format(base=tiny(tmp_path, "demo", 1_000_000), python=python))
    with Up(tmp_path, topology) as up:
        progress(up, 2)
        for fault in order:
            up.ended(rng.uniform(0.0, 3.0))
            up.until(f"something to hit: {fault}", partial(strike, up, fault, rng), GOES_ON_S)
            if rng.random() < 0.7:  # else the next one meets this one
                progress(up, 2)
        progress(up, 3)
        run_id = up.run_id()
        assert midflight(tmp_path, "down", "--run", str(up.path)).code == 0
        assert up.wait(600.0) == 0, up.output
    steps = [int(record["step"]) for record in records(up.path) if is_step(record)]
    refused = [one["why"] for one in samples(up.path) if one["state"] == "refused"]
    print(f"seed {seed}: {order}; {steps[-1]} steps, {len(samples(up.path))} samples, refused {len(refused)}")
    assert steps == list(range(1, steps[-1] + 1))
    balance = midflight(tmp_path, "ledger", "--run", str(up.path), "--json")
    assert (balance.code, balance.json["problems"]) == (0, [])
    assert balance.json["issued"] == sum(balance.json["states"].values())
    assert balance.json["states"]["trained"] == 16 * steps[-1]
    assert not refused
    assert list(nothing_left(up.path, run_id)) == []


def progress(up: Up, more: int) -> None:
    """Wait for so many further steps."""

    def newest() -> int:
        return max((int(record["step"]) for record in records(up.path) if is_step(record)), default=0)

    wanted = newest() + more
    up.until(f"step {wanted}", lambda: newest() >= wanted, GOES_ON_S)
