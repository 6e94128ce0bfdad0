"""A sandbox service: scores what `remote` sends, in sealed workers of this machine.

    MIDFLIGHT_SANDBOX_TOKEN=... python -m midflight.services.reward.sandbox.server --bind 127.0.0.1:8900 --workers 8

Run it where hostile code may run (a virtual machine of its own, say); put TLS in front of it. It keeps warm pools of
the reward files it saw last. It never works at "rlimits". Without a token it listens on this machine only.
"""

import argparse
import contextlib
import hmac
import json
import os
import queue
import select
import tempfile
import threading
import time
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from midflight.kernel.mistake import UserMistake
from midflight.services.reward.pool import Pool
from midflight.services.reward.process import Spec
from midflight.services.reward.verdict import InfrastructureFault, Job, Outcome, RewardFileError

from .ladder import chosen
from .remote import TOKEN, Broken, body_of

_MOST_FILES = 4
_LARGEST_REQUEST = 32 << 20  # bytes
_LONGEST_S = 3600.0  # a job's way through its queue
_LOCAL = ("127.0.0.1", "::1", "localhost")
Waiting = tuple[Job, "queue.SimpleQueue[Outcome]"]


class Warm:
    """The pool of one reward file under one set of limits, and the thread that serves it. Raises RewardFileError."""

    def __init__(self, spec: Spec, workers: int) -> None:
        self._pool = Pool(spec, workers, capacity=1 << 20)
        self._asked: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._waiting: dict[int, queue.SimpleQueue[Outcome]] = {}
        threading.Thread(target=self._serve, daemon=True).start()

    def score(self, job: dict[str, Any]) -> Outcome:
        """Run a job and wait for its outcome. Raises Broken."""
        answer: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._asked.put((Job(**job), answer))
        os.eventfd_write(self._bell, 1)
        try:
            outcome = answer.get(timeout=_LONGEST_S)
        except queue.Empty:
            return InfrastructureFault("the sandbox service did not come to it")
        if self._pool.broken and isinstance(outcome, InfrastructureFault):
            raise Broken(self._pool.broken)
        return outcome

    def close(self) -> None:
        """End the pool once its jobs are done."""
        self._asked.put(None)
        os.eventfd_write(self._bell, 1)

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._bell, select.POLLIN)
        poller.register(self._pool.fileno(), select.POLLIN)
        closing, number = False, 0
        while not closing or self._waiting:
            wait = 1.0 if self._pool.broken else min(1.0, max(0.0, self._pool.next_deadline() - time.monotonic()))
            poller.poll(wait * 1000)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._bell)
            with contextlib.suppress(queue.Empty):
                while True:
                    if (asked := self._asked.get_nowait()) is None:
                        closing = True
                        continue
                    job, answer = asked
                    number += 1  # ids are the client's, and there may be many
                    self._waiting[number] = answer
                    mine = Job(number, job.messages, job.answer, job.interact, job.state, job.call)
                    if not self._pool.submit(mine):
                        self._answer(number, InfrastructureFault(self._pool.broken or "the sandbox service is full"))
            for verdict in self._pool.tick(time.monotonic()):
                self._answer(verdict.id, verdict.outcome)
        self._pool.close()

    def _answer(self, number: int, outcome: Outcome) -> None:
        self._waiting.pop(number).put(outcome)


class Service(ThreadingHTTPServer):
    """Listens, and keeps the warm pools. Raises UserMistake: no sealed level works here, or an open door."""

    daemon_threads = True

    def __init__(self, host: str, port: int, workers: int, isolation: str = "auto") -> None:
        self.token = os.environ.pop(TOKEN, "")
        if not self.token and host not in _LOCAL:
            raise UserMistake(f"whoever reaches {host}:{port} may run code there - set {TOKEN}, or listen on 127.0.0.1")
        self.level, self._workers = chosen(isolation, trusted=False), workers
        self._folder = tempfile.TemporaryDirectory(prefix="midflight-sandbox-")
        self._warm: OrderedDict[tuple[object, ...], Warm] = OrderedDict()
        self._lock = threading.Lock()
        super().__init__((host, port), Handler)

    def warm(self, file: str, source: str, time_limit_s: float, memory_bytes: int) -> Warm:
        """The pool for a reward file, started if need be; the one that was asked longest ago makes room."""
        key = (file, source, time_limit_s, memory_bytes)
        with self._lock:
            if key not in self._warm:
                folder = Path(tempfile.mkdtemp(dir=self._folder.name))
                path = folder / Path(file).name
                path.write_text(source)
                spec = Spec(path, time_limit_s, memory_bytes, scratch=folder, level=self.level)
                self._warm[key] = Warm(spec, self._workers)
            self._warm.move_to_end(key)
            while len(self._warm) > _MOST_FILES:
                self._warm.popitem(last=False)[1].close()
            return self._warm[key]

    def server_close(self) -> None:
        """Stop listening and end the pools."""
        super().server_close()
        for warm in self._warm.values():
            warm.close()


class Handler(BaseHTTPRequestHandler):
    """POST /score; see `remote`."""

    server: Service
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Score one job."""
        said = self.headers.get("Content-Length", "")
        length = int(said) if said.isascii() and said.isdigit() else 0
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.server.token.encode()):
            return self._say(401, {"why": "the bearer token is not this service's"})
        if self.path != "/score" or not 0 < length <= _LARGEST_REQUEST:
            return self._say(404, {"why": "there is POST /score, with a body"})
        try:
            asked = json.loads(self.rfile.read(length))
            if asked["network"]:
                return self._say(422, {"why": "the sandbox service gives no network: set network: false"})
            warm = self.server.warm(asked["file"], asked["source"], asked["time_limit_s"], asked["memory_bytes"])
            self._say(200, body_of(warm.score(asked["job"])))
        except (Broken, RewardFileError) as error:
            self._say(422, {"why": str(error)})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._say(400, {"why": f"{type(error).__name__}: {error!s:.200}"})

    def _say(self, status: int, body: dict[str, object]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if status != 200:
            self.close_connection = True
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Be silent: what is asked is the clients' affair."""


def main() -> None:
    """Listen until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bind", default="127.0.0.1:8900", help="HOST:PORT")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="sandboxes per reward file")
    parser.add_argument("--isolation", choices=("auto", "bwrap", "namespaces"), default="auto")
    arguments = parser.parse_args()
    host, _, port = arguments.bind.rpartition(":")
    try:
        service = Service(host, int(port), arguments.workers, arguments.isolation)
    except UserMistake as error:
        parser.error(str(error))
    with service, contextlib.suppress(KeyboardInterrupt):
        service.serve_forever()


if __name__ == "__main__":
    main()
