"""A living run as a feed: one thread with a `ctl`, a `data` and an `ev` socket, that reads, asks and follows.

The past comes from the journal, the present from the subscription, and a hole from the kernel or, where that no longer
reaches back, from the journal again. Nothing here waits for the screen: what was not taken is kept up to a bound, and
beyond it the subscription is left alone, so that a stopped terminal costs the run nothing.
"""

import contextlib
import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import Final

import zmq

from midflight.kernel.client import Unreachable
from midflight.kernel.follow import Follow
from midflight.kernel.mail import Mail
from midflight.kernel.rundir import RunDir
from midflight.kernel.sample_files import StepSamples, list_steps, read_step
from midflight.messages.base import Message
from midflight.messages.control import Status, StatusGet
from midflight.messages.events import Event
from midflight.messages.knobs import KnobGet, Knobs
from midflight.messages.live import Controllers, ControllersGet
from midflight.messages.samples import LedgerGet, LedgerStatus
from midflight.messages.sockets import Endpoint, Incoming
from midflight.messages.wire import Received, WireError, decode

from .facts import About, Batch, Fact
from .history import read_facts
from .host import look, pids_of

POLL_S: Final = 1.0
DRAIN_S: Final = 0.1
"""The subscription is emptied so often, not once a message."""
DEADLINE_S: Final = 3.0
SLOW_S: Final = 5.0
"""A question that was not answered is asked again after so long; the host is looked at so often."""
KEPT: Final = 50_000
PIECE: Final = 10_000
"""Facts handed over in one go."""


class LiveFeed:
    """See `facts.Feed`. `take`, `want`, `ask` and `seek` may be called from any thread."""

    def __init__(self, about: About) -> None:
        self.about = about
        self.run = RunDir(about.path)
        info = self.run.info()
        if info is None:
            raise Unreachable(f"{about.path}: no live run here")
        self.info = info
        self._identity = f"tui-{os.getpid()}#{int.from_bytes(os.urandom(3), 'big')}"
        self._lock = threading.Lock()
        self._batch = Batch(reading=True)
        self._orders: deque[tuple[str, Message, Future[Message]]] = deque()
        self._wants = (False, False)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._leaving = False
        self._room = threading.Event()
        """Set when facts were taken."""
        self._heard = time.monotonic()
        self._over = not self.run.is_live()
        self._last = 0
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def start(self) -> None:
        """See `Feed`."""
        self._thread.start()

    def stop(self) -> None:
        """See `Feed`."""
        self._leaving = True
        self._wake()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def take(self) -> Batch:
        """See `Feed`."""
        with self._lock:
            batch = self._batch
            self._batch = Batch(reading=batch.reading, problem=batch.problem)
            if len(batch.facts) > PIECE:  # a long past is folded piece by piece, so that keys are answered meanwhile
                self._batch.facts, batch.facts = batch.facts[PIECE:], batch.facts[:PIECE]
                batch.reading = True
        self._room.set()
        batch.silent_s, batch.over = time.monotonic() - self._heard, self._over
        batch.ended = self._over and not batch.reading
        return batch

    def want(self, ledger: bool, host: bool) -> None:
        """See `Feed`."""
        self._wants = (ledger, host)

    def ask(self, port: str, message: Message) -> "Future[Message]":
        """See `Feed`."""
        future: Future[Message] = Future()
        self._orders.append((port, message, future))
        self._wake()
        return future

    def steps(self) -> list[int]:
        """See `Feed`."""
        return list_steps(self.about.path)

    def samples(self, step: int) -> StepSamples:
        """See `Feed`."""
        return read_step(self.about.path, step)

    def length(self) -> int:
        """A living run has no slider."""
        return 0

    def seek(self, position: int) -> None:
        """A living run is where it is."""

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"x")

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:  # a thread that ends without a word would look like a quiet run
            with self._lock:
                self._batch.problem, self._batch.reading = f"{type(error).__name__}: {error}", False

    def _follow(self) -> None:
        self._read_past()
        link = _Link(self.info.endpoints, self._identity)
        mail = Mail(self._identity, link)
        follow = Follow(mail, self._event, self._last)
        polls = _Polls(self, mail, follow)
        try:
            while not self._leaving:
                self._turn(link, mail, follow, polls)
        finally:
            link.close()

    def _read_past(self) -> None:
        piece: list[Fact] = []
        for fact in read_facts(self.about.path):
            piece.append(fact)
            if len(piece) >= PIECE:
                self._put(piece)
                piece = []
                self._wait_for_room()
            if self._leaving:
                return
        self._put(piece)
        with self._lock:
            self._batch.reading = False

    def _wait_for_room(self) -> None:
        while len(self._batch.facts) >= KEPT and not self._leaving:
            self._room.clear()
            self._room.wait(POLL_S)

    def _put(self, facts: list[Fact]) -> None:
        with self._lock:
            self._batch.facts += facts
        if facts:
            self._last = facts[-1].seq

    def _turn(self, link: "_Link", mail: Mail, follow: Follow, polls: "_Polls") -> None:
        full = len(self._batch.facts) >= KEPT
        if link.wait(DRAIN_S, self._wake_read, deaf=full):
            os.read(self._wake_read, 512)
        if full:  # nobody looks: not even answers are read, which might bring more
            return
        while self._orders:
            self._order(mail, *self._orders.popleft())
        for port in ("ctl", "data"):
            for incoming in link.drain(port):
                self._heard = time.monotonic() if port == "ctl" else self._heard
                mail.open(port, incoming)
        if link.due(DRAIN_S):
            for incoming in link.drain("ev"):
                self._heard = time.monotonic()
                with contextlib.suppress(WireError):
                    message = decode(incoming.frames).message
                    if isinstance(message, Event):
                        follow.live(message)
        mail.tick()
        polls.turn(self._wants, self._heard)

    def _look(self) -> None:
        """Whether the run still lives; once it does not, its last words are in the journal alone."""
        over = not self.run.is_live()
        if over and not self._over:
            self._put(list(read_facts(self.about.path, self._last)))
        self._over = over

    def _event(self, event: Event) -> None:
        if event.seq <= self._last:  # read from the journal meanwhile
            return
        if event.seq > self._last + 1:
            begun = self._last > 0  # a journal may begin late, where its oldest files are gone
            self._put([fact for fact in read_facts(self.about.path, self._last) if fact.seq < event.seq])
            if begun and event.seq > self._last + 1:
                with self._lock:
                    self._batch.gap = True
        self._put([Fact(event.seq, event.ns, event.source, event.topic, event.step, event.body)])

    def _order(self, mail: Mail, port: str, message: Message, future: "Future[Message]") -> None:
        def answered(received: Received) -> None:
            future.set_result(received.message)

        def unanswered(why: str) -> None:
            future.set_exception(Unreachable(why))

        if future.set_running_or_notify_cancel():
            mail.request(port, message, DEADLINE_S, answered, unanswered)

    def _answer(self, message: Message) -> None:
        with self._lock:
            batch = self._batch
            if isinstance(message, Status):
                batch.status = message
            elif isinstance(message, Knobs):
                batch.knobs = message
            elif isinstance(message, Controllers):
                batch.controllers = message
            elif isinstance(message, LedgerStatus):
                batch.ledger = message


class _Polls:
    """The questions that are asked again and again, each once the last answer or its deadline has come."""

    def __init__(self, feed: LiveFeed, mail: Mail, follow: Follow) -> None:
        self.feed, self.mail, self.follow = feed, mail, follow
        self._due: dict[str, float] = {}
        self._pids: dict[str, int] = {}
        self._run_id = feed.info.run_id

    def turn(self, wants: tuple[bool, bool], heard: float) -> None:
        """Ask what is due."""
        now = time.monotonic()
        if self._is_due("life", now, POLL_S) and now - heard > POLL_S:
            self.feed._look()
        if not self.feed._over:
            self._ask("status", "ctl", StatusGet(), now)
            self._ask("knobs", "ctl", KnobGet(), now)
            self._ask("controllers", "ctl", ControllersGet(), now)
            if wants[0]:
                self._ask("ledger", "data", LedgerGet(), now)
        if wants[1] and self._is_due("host", now, SLOW_S / 2):
            sample = look(time.time_ns(), self.feed.about.path, self._run_id, self._pids)
            with self.feed._lock:
                self.feed._batch.host = sample

    def _is_due(self, name: str, now: float, again_s: float) -> bool:
        if self._due.get(name, 0.0) > now:
            return False
        self._due[name] = now + again_s
        return True

    def _ask(self, name: str, port: str, message: Message, now: float) -> None:
        if not self._is_due(name, now, DEADLINE_S + SLOW_S):
            return

        def answered(received: Received) -> None:
            self._due[name] = max(now + POLL_S, time.monotonic())
            if isinstance(received.message, Status):
                self._status(received.message)
            self.feed._answer(received.message)

        def unanswered(why: str) -> None:
            self._due[name] = time.monotonic() + (POLL_S if name == "status" else SLOW_S)

        self.mail.request(port, message, DEADLINE_S, answered, unanswered, name=name)

    def _status(self, status: Status) -> None:
        self.feed._over = False
        self._run_id = status.run_id
        self._pids = pids_of(status)
        self._pids |= {"kernel": status.kernel_pid, "warden": status.warden_pid, "this tui": os.getpid()}
        self.follow.catch_up(status.seq)


class _Link:
    """The sockets of the thread; the mail's `Bus`."""

    def __init__(self, endpoints: dict[str, str], identity: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._ports = {
            "ctl": Endpoint(self._context, "dealer", endpoints["ctl"], identity),
            "data": Endpoint(self._context, "dealer", endpoints["data"], identity),
            "ev": Endpoint(self._context, "sub", endpoints["ev"]),
        }
        self._drained = 0.0

    def now(self) -> float:
        """See `Bus`."""
        return time.monotonic()

    def send(self, port: str, frames: list[bytes], to: str = "") -> bool:
        """See `Bus`."""
        return self._ports[port].send(frames, to)

    def wait(self, seconds: float, wake: int, deaf: bool) -> bool:
        """Until an answer comes, unless `deaf`, or it is time to empty the subscription; -> whether `wake` woke it."""
        poller = zmq.Poller()
        poller.register(wake, zmq.POLLIN)
        for port in () if deaf else ("ctl", "data"):
            poller.register(self._ports[port].socket, zmq.POLLIN)
        left = self._drained + seconds - time.monotonic()
        if left <= 0 and not deaf:  # a quiet stream wakes nobody
            poller.register(self._ports["ev"].socket, zmq.POLLIN)
            left = seconds * 5
        elif deaf:
            left = seconds
        return any(source == wake for source, _ in poller.poll(int(left * 1000) + 1))

    def due(self, seconds: float) -> bool:
        """Whether it is time to empty the subscription."""
        now = time.monotonic()
        if now - self._drained < seconds:
            return False
        self._drained = now
        return True

    def drain(self, port: str) -> "list[Incoming]":
        """What waits at a socket."""
        return list(self._ports[port].drain(2_000))

    def close(self) -> None:
        """Close all; what is queued is dropped."""
        for endpoint in self._ports.values():
            endpoint.close()
        self._context.term()
