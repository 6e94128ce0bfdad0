"""Control messages through the kernel against a bare pyzmq ROUTER echo, per CPU second, in one run.

    python benchmarks/kernel.py [--messages 20000] [--rounds 7] [--flight 32]

The kernel is the real process under its warden, with one idle service; the client is attached to it and sends
heartbeats, of which one in 32 is a status request, 32 in flight. The echo gets the same heartbeat's frames and sends
them back with nothing looked at. CPU is that of the whole answering process, libzmq's thread included; the ratio is
the median of the rounds, the two sides of which follow each other. Latency is one
heartbeat at a time with nothing else going on. Target: ratio 0.45, aim 0.6. Last, the CPU time of a whole
`midflight ps` against that of a Python that imports its libraries: at most 1.5 times.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import zmq
from common import LiveRun, cpu_seconds, live_run, percentile, show

from midflight.kernel.client import Client
from midflight.messages.base import Message
from midflight.messages.control import Heartbeat, Hello, StatusGet, Welcome
from midflight.messages.envelope import MAJOR
from midflight.messages.wire import Sealer, dump

STATUS_EVERY = 32
TOPOLOGY = """
version: 1
run: bench
model: {build: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1, head_dim: 8,
                intermediate_size: 8}}
services:
  tracker: {sinks: []}
"""
ECHO = """
import sys, zmq
socket = zmq.Context().socket(zmq.ROUTER)
socket.bind(sys.argv[1])
while True:
    socket.send_multipart(socket.recv_multipart())
"""
PS = [sys.executable, "-P", "-m", "midflight.kernel.cli.main", "ps", "--run"]
LIBRARIES = [sys.executable, "-c", "import argparse, json, msgpack, zmq; from pydantic import BaseModel"]
BEAT = Heartbeat(progress=812, ready=True, waits=[], stats={"active": 128, "queued": 32, "version": 41})
"""A rollout's."""


def sealed(identity: str, message: Message) -> list[bytes]:
    """The frames of one message."""
    return Sealer(identity).seal(message.KIND, dump(message))[1]


def exchange(socket: "zmq.Socket[bytes]", frames: list[list[bytes]], count: int, flight: int) -> None:
    """`count` round trips, `flight` of them under way at any time; `frames` are sent in turn."""
    sent = 0
    while sent < min(flight, count):
        socket.send_multipart(frames[sent % len(frames)])
        sent += 1
    for _ in range(count):
        if not socket.poll(10_000):
            raise TimeoutError("an answer is missing")
        socket.recv_multipart()
        if sent < count:
            socket.send_multipart(frames[sent % len(frames)])
            sent += 1


def latencies(socket: "zmq.Socket[bytes]", frames: list[bytes], count: int) -> list[float]:
    """Seconds of single round trips."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        exchange(socket, [frames], 1, 1)
        times.append(time.perf_counter() - began)
    return times


def attach(run: LiveRun, client: Client) -> "zmq.Socket[bytes]":
    """Say hello as a client, so that heartbeats are heard; -> the connected socket."""
    hello = Hello(proto_min=MAJOR, proto_max=MAJOR, pid=os.getpid(), role="client", version="bench")
    answer = client.ask("ctl", hello).message
    assert isinstance(answer, Welcome), answer
    return client.port("ctl").socket


def measure(messages: int, rounds: int, flight: int) -> dict[str, Any]:
    """CPU per message of both, their ratio, and idle latencies."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = f"ipc://{folder}/echo.ipc"
        echo = subprocess.Popen([sys.executable, "-c", ECHO, url])
        try:
            with live_run(TOPOLOGY, folder) as run, Client(run.path) as client:
                run.until_ready()
                bare: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
                bare.connect(url)
                beat = sealed(client.identity, BEAT)
                mixed = [beat] * (STATUS_EVERY - 1) + [sealed(client.identity, StatusGet())]
                sides = {
                    "kernel": (attach(run, client), mixed, run.kernel_pid()),
                    "echo": (bare, [beat], echo.pid),
                }
                return _rounds(sides, beat, messages, rounds, flight) | _ps(run.path, 2 + rounds)
        finally:
            echo.kill()
            echo.wait()


def _rounds(sides: dict[str, Any], beat: list[bytes], messages: int, rounds: int, flight: int) -> dict[str, Any]:
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    idle: dict[str, list[float]] = {name: [] for name in sides}
    for socket, frames, _ in sides.values():
        exchange(socket, frames, messages // 10, flight)
    for _ in range(rounds):
        for name, (socket, frames, pid) in sides.items():
            before, began = cpu_seconds(pid), time.perf_counter()
            exchange(socket, frames, messages, flight)
            cpu[name].append((cpu_seconds(pid) - before) / messages)
            wall[name].append((time.perf_counter() - began) / messages)
            idle[name] += latencies(socket, beat, 500)
    best = {name: min(values) for name, values in cpu.items()}
    ratios = [echo / kernel for echo, kernel in zip(cpu["echo"], cpu["kernel"], strict=True)]
    return {
        "us_cpu": {name: round(1e6 * value, 2) for name, value in best.items()},
        "per_cpu_s": {name: round(1 / value) for name, value in best.items()},
        "per_wall_s": {name: round(1 / min(values)) for name, values in wall.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
        "idle_p50_us": {name: round(1e6 * percentile(values, 0.5)) for name, values in idle.items()},
        "idle_p99_us": {name: round(1e6 * percentile(values, 0.99)) for name, values in idle.items()},
    }


def _ps(run: Path, rounds: int) -> dict[str, float]:
    """CPU milliseconds of one `ps`, the least of the rounds, and how many times those of its libraries that is."""
    ps = min(_cpu([*PS, str(run)]) for _ in range(rounds))
    return {"ps_cpu_ms": round(1e3 * ps, 1), "ps_ratio": round(ps / min(_cpu(LIBRARIES) for _ in range(rounds)), 2)}


def _cpu(argv: list[str]) -> float:
    """User and system seconds of a command; byte code is cached, as it is for a user."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(argv)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print the table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--flight", type=int, default=32)
    options = parser.parse_args()
    result = measure(options.messages, options.rounds, options.flight)
    keys = ("us_cpu", "per_cpu_s", "per_wall_s", "idle_p50_us", "idle_p99_us")
    show([("", "kernel", "echo"), *((key, str(result[key]["kernel"]), str(result[key]["echo"])) for key in keys)])
    print(f"ratio per CPU, median of rounds {result['ratio']} of {result['ratios']} (target 0.45, aim 0.6)")
    print(f"midflight ps {result['ps_cpu_ms']} ms of CPU, {result['ps_ratio']} times its libraries (target 1.5)")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
