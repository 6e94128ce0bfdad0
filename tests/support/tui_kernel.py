"""The kernel's side of a run directory without a kernel: sockets, a journal, an event stream that may lose events."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq

from midflight.kernel.journal import Journal
from midflight.kernel.rundir import RunDir, RunInfo
from midflight.messages.base import Message, Scalar
from midflight.messages.control import Done, Status, StatusGet
from midflight.messages.events import Event, Events, EventsGet
from midflight.messages.knobs import KnobGet
from midflight.messages.live import ControllersGet
from midflight.messages.samples import LedgerGet
from midflight.messages.sockets import Endpoint
from midflight.messages.wire import Sealer, decode, dump

from . import tui_data as data


def make_run(path: Path) -> RunDir:
    """A run directory that a living process holds."""
    run = RunDir(path).create().hold()
    run.publish(RunInfo("demo", "demo-1a2b3c4d", os.getpid(), data.BEGAN, 1, run.endpoints(), "0" * 32))
    run.write_json(run.config_json, data.CONFIG)
    return run


class ToyKernel:
    """Publishes events, answers questions from a thread of its own; `ring` is how many events it remembers."""

    def __init__(self, run: RunDir, ring: int = 20_000) -> None:
        self.run, self.ring = run, ring
        self.events: list[Event] = []
        self.asked: list[Message] = []
        self.mute = False
        self.journal = Journal(run.journal, dict)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        ends = run.endpoints()
        self._ctl = Endpoint(self._context, "router", ends["ctl"])
        self._data = Endpoint(self._context, "router", ends["data"])
        self._ev = Endpoint(self._context, "xpub", ends["ev"])
        self._sealer = Sealer("kernel#1")
        self._lock = threading.Lock()
        self._leaving = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def emit(self, topic: str, body: dict[str, Scalar], step: int | None = None, *, live: bool = True) -> None:
        """Journal an event and publish it, unless the subscription is to lose it."""
        with self._lock:
            seq = len(self.events) + 1
            event = Event(seq=seq, stream="s", ns=data.at(seq), source="learner#1", topic=topic, step=step, body=body)
            self.events.append(event)
            record = {"t": "event", "stream": "s", "seq": seq, "ns": event.ns, "source": event.source, "topic": topic}
            self.journal.append({**record, "step": step, "body": body, "of": "", "post": None})
            self.journal.flush()
            if live:
                self._ev.send(self._sealer.seal(event.KIND, dump(event))[1])

    def stop(self) -> None:
        """End the thread and close."""
        self._leaving = True
        self._thread.join()
        for end in (self._ctl, self._data, self._ev):
            end.close()
        self._context.term()
        self.journal.close()

    def _serve(self) -> None:
        poller = zmq.Poller()
        for end in (self._ctl, self._data):
            poller.register(end.socket, zmq.POLLIN)
        while not self._leaving:
            poller.poll(20)
            with self._lock:
                list(self._ev.drain())
                for end in (self._ctl, self._data):
                    for incoming in end.drain():
                        received = decode(incoming.frames)
                        self.asked.append(received.message)
                        if not self.mute:
                            answer = self._answer(received.message)
                            frames = self._sealer.seal(answer.KIND, dump(answer), correlation=received.envelope.id)[1]
                            end.send(frames, incoming.sender)

    def _answer(self, message: Message) -> Message:
        newest = len(self.events)
        if isinstance(message, EventsGet):
            kept = self.events[max(message.after, newest - self.ring) :]
            return Events(
                stream="s", events=kept[: message.limit], newest=newest, gap=message.after < newest - self.ring
            )
        if isinstance(message, StatusGet):
            return Status(**{**data.status().model_dump(), "seq": newest})
        if isinstance(message, KnobGet):
            return data.knobs()
        if isinstance(message, ControllersGet):
            return data.controllers()
        if isinstance(message, LedgerGet):
            return data.ledger(message.sample)
        return Done(detail="heard")


@contextmanager
def toy_kernel(path: Path, ring: int = 20_000) -> Iterator[ToyKernel]:
    """A toy kernel on a fresh run directory."""
    run = make_run(path)
    kernel = ToyKernel(run, ring)
    try:
        yield kernel
    finally:
        kernel.stop()
        run.release()
