"""A pool whose calls run elsewhere: the HTTP client of a sandbox service (`server`), with the interface of `Pool`.

`POST URL/score` with {file, source, time_limit_s, memory_bytes, network, job} is answered with 200 and an outcome
(`outcome_of`), or with 401, 404 or 422 and the reason when no job will ever be scored: that ends the pool. All else is
the infrastructure's fault: a job is sent again with growing waits, then given back. Threads do the waiting, one per
call at a time; the caller's thread hears of it by `fileno`. The environment variable MIDFLIGHT_SANDBOX_TOKEN, if set,
is sent as a bearer token and never told.
"""

import contextlib
import http.client
import json
import math
import os
import queue
import threading
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import urlsplit

from midflight.services.reward.process import Spec
from midflight.services.reward.source import read_source
from midflight.services.reward.verdict import (
    Acted,
    InfrastructureFault,
    Job,
    Outcome,
    ProgramFault,
    Scored,
    Verdict,
    checked_messages,
    checked_rewards,
)

TOKEN = "MIDFLIGHT_SANDBOX_TOKEN"  # noqa: S105 (the variable's name)
_KINDS: dict[str, type[Outcome]] = {kind.__name__: kind for kind in (Scored, Acted, ProgramFault, InfrastructureFault)}
_HOPELESS = (401, 404, 422)
_WAITS_S = (0.1, 0.5, 2.0, 5.0)
_BEYOND_LIMIT_S = 60.0  # for the queue there and the way


def body_of(outcome: Outcome) -> dict[str, object]:
    """An outcome as JSON: its fields and `kind`, the name of its class."""
    return {"kind": type(outcome).__name__, **asdict(outcome)}


def outcome_of(body: dict[str, Any]) -> Outcome:
    """The outcome that `body_of` made into `body`. Raises KeyError, TypeError or ValueError if there is none."""
    outcome = _KINDS[body.pop("kind")](**body)
    if isinstance(outcome, Scored):
        checked_rewards(outcome.rewards)
    elif isinstance(outcome, Acted):
        checked_messages(outcome.messages)
    return outcome


class Broken(Exception):
    """The service cannot use the reward file; the text says why."""


class RemotePool:
    """See the module and `Pool`. At most `calls` jobs are there at a time, `capacity` are held here."""

    def __init__(self, spec: Spec, url: str, calls: int = 1, capacity: int = 4096) -> None:
        self._spec, self._capacity, self._url = spec, capacity, urlsplit(url)
        self._source = read_source(spec.file)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Verdict] = queue.SimpleQueue()
        self._held: set[int] = set()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing, self._mine = threading.Event(), threading.local()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(calls)]
        self.broken: str | None = None
        for thread in self._threads:
            thread.start()

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are verdicts."""
        return self._bell

    @property
    def free(self) -> int:
        """How many more jobs `submit` takes."""
        return 0 if self.broken else self._capacity - len(self._held)

    def limit(self, seconds: float) -> None:
        """From the next call on, the longest time of one."""
        self._spec = replace(self._spec, time_limit_s=seconds)

    def hold(self, jobs: int) -> None:
        """Have room for at least so many."""
        self._capacity = max(self._capacity, jobs)

    def next_deadline(self) -> float:
        """There is nothing to do before an event."""
        return math.inf

    def submit(self, job: Job) -> bool:
        """Take a job, or return False if the pool is full or broken. Raises ValueError: its id is in the pool."""
        if self.free <= 0:
            return False
        if job.id in self._held:
            raise ValueError(f"job {job.id} is in the pool already")
        self._held.add(job.id)
        self._jobs.put(job)
        return True

    def tick(self, now: float) -> list[Verdict]:
        """Return the new verdicts."""
        return self.on_readable(now)

    def on_readable(self, now: float) -> list[Verdict]:
        """Return the new verdicts."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        verdicts: list[Verdict] = []
        with contextlib.suppress(queue.Empty):
            while True:
                verdicts.append(self._answers.get_nowait())
        self._held -= {verdict.id for verdict in verdicts}
        return verdicts

    def close(self) -> list[Verdict]:
        """Stop sending; jobs without a verdict get an `InfrastructureFault`."""
        self.broken = self.broken or "the reward pool was closed"
        self._closing.set()
        for _ in self._threads:
            self._jobs.put(None)
        verdicts = self.on_readable(0.0)
        return verdicts + [Verdict(job, InfrastructureFault(self.broken)) for job in sorted(self._held)]

    def _work(self) -> None:
        """A thread: one call after the other, over one connection."""
        while (job := self._jobs.get()) is not None:
            outcome = self._tried(job)
            self._answers.put(Verdict(job.id, outcome))
            with contextlib.suppress(OSError):
                os.eventfd_write(self._bell, 1)

    def _tried(self, job: Job) -> Outcome:
        """Have a job done, however many tries that takes, within reason."""
        why = "the reward pool was closed"
        for wait in (0.0, *_WAITS_S):
            if self._closing.wait(wait) or self.broken:
                return InfrastructureFault(self.broken or why)
            try:
                return self._ask(job)
            except Broken as error:
                self.broken = str(error)
            except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
                why = f"the sandbox service {self._url.netloc}: {error!r:.200}"
                self._drop()
        return InfrastructureFault(why)

    def _connected(self) -> http.client.HTTPConnection:
        """This thread's connection."""
        if (connection := getattr(self._mine, "connection", None)) is None:
            kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
            wait = self._spec.time_limit_s + _BEYOND_LIMIT_S
            connection = self._mine.connection = kind(self._url.hostname or "", self._url.port, timeout=wait)
        return connection

    def _drop(self) -> None:
        """Close this thread's connection; the next try makes another."""
        self._connected().close()
        self._mine.connection = None

    def _ask(self, job: Job) -> Outcome:
        """Have one job done. Raises Broken, and what `_tried` takes for the infrastructure's fault."""
        spec = self._spec
        asked = {"file": str(spec.file), "source": self._source, "time_limit_s": spec.time_limit_s}
        asked |= {"memory_bytes": spec.memory_bytes, "network": spec.network, "job": asdict(job)}
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(TOKEN):
            headers["Authorization"] = f"Bearer {token}"
        connection = self._connected()
        connection.request("POST", f"{self._url.path.rstrip('/')}/score", json.dumps(asked).encode(), headers)
        answer = connection.getresponse()
        said = answer.read()
        if answer.status in _HOPELESS:
            raise Broken(f"{self._url.scheme}://{self._url.hostname}: {json.loads(said)['why']}")
        if answer.status != 200:
            raise ValueError(f"HTTP {answer.status} {answer.reason}")
        return outcome_of(json.loads(said))
