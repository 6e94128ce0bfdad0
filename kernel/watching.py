"""Following a run's events from outside, by subscription and without a hole: for the verbs that wait for something.

newest = client.ask("ctl", StatusGet()).message.seq
client.ask("ctl", SwapStart(...))
for event in follow(client, newest, deadline_s=60.0):
    if event.topic == "swap" and event.body["stage"] == "done":
        break
"""

import math
import os
import time
from collections.abc import Iterator
from typing import Final

import zmq

from midflight.messages.events import Event, Events, EventsGet
from midflight.messages.wire import WireError, decode

from .client import Client, Unreachable
from .events import Follower
from .journal_files import read_events
from .rundir.directory import RunDir

ASK_S: Final = 1.0
CHECK_S: Final = 1.0
"""In silence the kernel is asked so often: a subscription tells at once, but may lose its first and last events."""
PAGE: Final = 500


def follow(client: Client, after: int = 0, deadline_s: float | None = None) -> Iterator[Event]:
    """Every event after number `after`, each once and in order, until the run is over; then it ends.

    What the kernel still has of the past comes first, so 0 means: from as early as it remembers; of a run that is over,
    all that its journal has. A kernel that is starting, also again, is waited for.

    Raises:
        TimeoutError: `deadline_s` seconds have passed.
        Unreachable: the run speaks another protocol.
    """
    until = math.inf if deadline_s is None else time.monotonic() + deadline_s
    stream = _Stream(client, after)
    try:
        yield from stream.events(until)
    finally:
        stream.close()


class _Stream:
    """The subscription, the questions that fill its holes, and the death of the run."""

    def __init__(self, client: Client, after: int) -> None:
        self.client = client
        self.follower: Follower[Event] = Follower()
        self.follower.last = after
        self.endpoint = client.port("ev", "sub")
        self._warden = _handle(client)
        self._poller = zmq.Poller()
        self._poller.register(self.endpoint.socket, zmq.POLLIN)
        if self._warden is not None:
            self._poller.register(self._warden, zmq.POLLIN)

    def close(self) -> None:
        """Give the handle back; the subscription is the client's."""
        if self._warden is not None:
            os.close(self._warden)
            self._warden = None

    def events(self, until: float) -> Iterator[Event]:
        """See `follow`."""
        over = self._warden is None
        while not over:
            while self.follower.missing and not self._over(0.0):
                yield from self._page(until)
            over = self._over(min(CHECK_S, _left(until)))
            heard = self._heard()
            yield from heard
            if not heard:
                self.follower.missing = True
        for event in read_events(self.client.run_dir, after=self.follower.last):  # what nobody can be asked for now
            yield Event(stream=self.follower.stream, **event)

    def _page(self, until: float) -> list[Event]:
        """What the kernel has after the last number taken; nothing when it is away."""
        asked, patience = time.monotonic(), min(ASK_S, _left(until))
        try:
            answer = self.client.ask("ctl", EventsGet(after=self.follower.last, limit=PAGE), patience).message
        except Unreachable:
            if time.monotonic() - asked < patience:  # not silence, but a refusal
                raise
            return []
        if not isinstance(answer, Events):
            return []
        complete = not answer.events or answer.events[-1].seq >= answer.newest
        items = ((event.seq, event) for event in answer.events)
        return self.follower.fill(items, answer.newest, answer.stream, complete)

    def _over(self, wait_s: float) -> bool:
        """Wait for something to happen; -> whether the run has ended."""
        return any(source == self._warden for source, _ in self._poller.poll(math.ceil(wait_s * 1000)))

    def _heard(self) -> list[Event]:
        """What the subscription brought and may be given out."""
        ready: list[Event] = []
        for incoming in self.endpoint.drain():
            try:
                event = decode(incoming.frames).message
            except WireError:
                continue
            if isinstance(event, Event):
                ready += self.follower.offer(event.seq, event, event.stream)
        return ready


def _left(until: float) -> float:
    """Seconds left. Raises TimeoutError when there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _handle(client: Client) -> int | None:
    """A descriptor that is readable when the run's warden is dead; None when it is dead already."""
    lock = RunDir(client.run_dir).lock
    try:
        handle = os.pidfd_open(lock.holder()[0])
    except OSError:
        return None
    if lock.is_live():  # asked afterwards, so that the number cannot have passed to another process
        return handle
    os.close(handle)
    return None
