"""A run whose tools work in sandboxes, ask a server outside, and are killed and stopped at every level."""

import contextlib
import json
import random
import signal
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from midflight.kernel.process import marked_processes, read_stat, signal_process, wait_process
from support.e2e_run import Up, leads
from support.e2e_turns import turns

REPLICAS = ("reward-0", "reward-1")
TOOLS = """
import http.client, json, time

def asked(call, turns, seen):
    connection = http.client.HTTPConnection("127.0.0.1", {port}, timeout=20)
    connection.request("POST", "/", json.dumps({{"key": call, "body": f"{{turns}} {{seen}}"}}))
    return connection.getresponse().read().decode()

def interact(messages, state, call):
    turns = sum(message["role"] == "assistant" for message in messages)
    said = asked(call, turns, state.get("seen", 0))
    time.sleep(0.05)
    state["seen"] = state.get("seen", 0) + 1
    return [{{"role": "tool", "content": said}}] if turns < 3 else []

def reward_fn(messages, answer, state):
    text = "".join(message["content"] for message in messages if message["role"] == "assistant")
    return sum(letter in "abcdefghij" for letter in text) / 16 + len(text) / 1000 + float(state.get("seen", 0))
"""
MORE = """
extends: turns.yaml
run: storm
services:
  reward:
    trusted: false
    network: true
    replicas: 2
    workers: 2
    time_limit_s: 20
    intensity: 1000
    backoff_max_s: 0.05
"""


class World(ThreadingHTTPServer):
    """What the tools act on: each key is carried out once, and its answer repeated to whoever asks again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.answers: dict[str, str] = {}
        self.bodies: dict[str, set[str]] = {}
        self.asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def act(self, key: str, body: str) -> str:
        """Carry out a call, or say what came of it."""
        with self._lock:
            self.asked[key] += 1
            self.bodies.setdefault(key, set()).add(body)
            return self.answers.setdefault(key, f"{key}!{len(self.answers)}")


class Asked(BaseHTTPRequestHandler):
    """POST {key, body}."""

    server: World

    def do_POST(self) -> None:
        """Answer with the text of a tool."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not body:  # whoever asked was killed
            return
        asked = json.loads(body)
        text = self.server.act(asked["key"], asked["body"]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def handle(self) -> None:
        """Serve; those who ask may die."""
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Be silent."""


def topology(folder: Path, steps: int, port: int) -> Path:
    """Write the topology and its tools."""
    turns(folder, steps)
    (folder / "tools.py").write_text(TOOLS.format(port=port))
    path = folder / "storm.yaml"
    path.write_text(MORE)
    return path


def below(pid: int) -> list[int]:
    """The children of a process."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@dataclass
class Storm:
    """Faults on the reward services of a run and on what is inside them."""

    up: Up
    rng: random.Random
    faults: Counter[str] = field(default_factory=Counter)
    seen: set[tuple[int, int]] = field(default_factory=set)
    """(pid, start time) of every process of a sandbox that was seen."""

    def strike(self) -> None:
        """One fault: somebody of a level is killed, or stopped for a while."""
        levels = self._levels()
        level = self.rng.choice(sorted(levels))
        pid = self.rng.choice(levels[level]) if levels[level] else 0
        how = self.rng.choice((signal.SIGKILL, signal.SIGSTOP))
        try:
            started = read_stat(pid).started if pid else 0
        except ProcessLookupError:
            return
        if not pid or not signal_process(pid, started, how):
            return
        self.faults[f"{how.name[3:].lower()} {level}"] += 1
        if how == signal.SIGSTOP:
            self.up.ended(self.rng.uniform(0.1, 1.5))
            signal_process(pid, started, signal.SIGCONT)

    def _levels(self) -> dict[str, list[int]]:
        """Who lives, by level: the service, the keeper of a sandbox, its PID 1, its calls."""
        services = [
            stat.pid for name in REPLICAS for stat in marked_processes(self.up.run_id(), name) if leads(stat.pid)
        ]
        keepers = [pid for service in services for pid in below(service)]
        inits = [pid for keeper in keepers for pid in below(keeper)]
        calls = [pid for init in inits for pid in below(init)]
        for pid in (*keepers, *inits, *calls):
            try:
                self.seen.add((pid, read_stat(pid).started))
            except ProcessLookupError:
                continue
        return {"service": services, "keeper": keepers, "init": inits, "call": calls}

    def left(self) -> list[int]:
        """Which of the sandboxes' processes still live when the run is over."""
        return [pid for pid, started in self.seen if not wait_process(pid, started, 10.0)]


def files_left(run: Path) -> list[str]:
    """Folders of workers."""
    return [str(path) for path in (run / "scratch").rglob("midflight-reward-*")] if (run / "scratch").exists() else []
