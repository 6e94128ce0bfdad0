"""The run's event stream: numbered, journaled, published, and kept for a while for those who come late.

A post is journaled with its sender and key, so that one which arrives twice, even at a restarted kernel, has one
effect.
"""

import os
import time
from dataclasses import asdict
from typing import Any, Final, Protocol

from midflight.messages import events as wire
from midflight.messages.base import Scalar

from .events import Event, EventLog
from .mail import Mail
from .node import Letter
from .seen import Seen

KEPT: Final = 20_000


class Record(Protocol):
    """Where the kernel remembers; `journal.Journal` is one."""

    def append(self, value: object) -> None:
        """Buffer one record of plain values."""

    def flush(self) -> bool:
        """Write what is buffered; False when the disk refuses, and then all of it is kept."""


class Stream:
    """Numbers events from 1, over all incarnations of the kernel."""

    def __init__(self, mail: Mail, journal: Record) -> None:
        self.mail, self.journal = mail, journal
        self.log = EventLog(capacity=KEPT)
        self.id = os.urandom(4).hex()
        """Names the numbering; the journal keeps it."""
        self.seen = Seen()
        self._unpublished: list[wire.Event] = []

    @property
    def newest(self) -> int:
        """Number of the newest event."""
        return self.log.newest

    def snapshot(self) -> dict[str, Any]:
        """What a successor needs when the records before are gone."""
        kept = [asdict(event) for event in self.log.snapshot().events]
        return {"id": self.id, "newest": self.log.newest, "posted": self.seen.snapshot(), "kept": kept}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo `snapshot`."""
        self.id = state["id"]
        for event in state["kept"]:
            self.log.newest = event["seq"] - 1
            self.log.publish(**{name: value for name, value in event.items() if name != "seq"})
        self.log.newest = state["newest"]
        self.seen.restore(state["posted"])

    def replay(self, record: dict[str, Any]) -> None:
        """Take up an event that a former kernel journaled."""
        self.id = record["stream"]
        self.log.newest = record["seq"] - 1
        fields = {name: record[name] for name in ("topic", "body", "source", "ns", "step")}
        self.log.publish(**fields, key=record["of"])
        if record["post"] is not None:
            self.seen.take(record["source"], record["post"])

    def emit(
        self,
        source: str,
        topic: str,
        body: dict[str, Scalar],
        *,
        step: int | None = None,
        of: str = "",
        final: bool = False,
        post: int | None = None,
    ) -> None:
        """Number and journal a fact; `flush` publishes it.

        `of`: what the event replaces in the snapshot. `post`: its sender's number.
        """
        event = self.log.publish(topic, body, key=of, source=source, ns=time.time_ns(), step=step, final=final)
        record = {
            "t": "event",
            "stream": self.id,
            "seq": event.seq,
            "ns": event.ns,
            "source": source,
            "topic": topic,
            "step": step,
        }
        self.journal.append({**record, "body": body, "of": of, "post": post})
        self._unpublished.append(self._message(event))

    def flush(self) -> bool:
        """Write the journal, then publish: a successor must never give a number away that somebody has seen.

        False: the disk refused. What happened is shown all the same.
        """
        written = self.journal.flush()
        for event in self._unpublished:
            self.mail.send("ev", event)
        self._unpublished.clear()
        return written

    def post(self, message: wire.Post, letter: Letter) -> None:
        """A service's event; acknowledged once it is written, whether it is new or a repeat."""
        if self.seen.take(letter.sender, message.key):
            self.emit(letter.sender, message.topic, message.body, step=message.step, post=message.key)
        if self.flush():
            letter.reply(wire.PostOk(key=message.key))

    def answer(self, message: wire.EventsGet, letter: Letter) -> None:
        """What came after a number, as far as it is still here."""
        page = self.log.after(message.after, message.limit)
        events = [self._message(event) for event in page.events]
        letter.reply(wire.Events(stream=self.id, events=events, newest=page.newest, gap=page.gap))

    def _message(self, event: Event) -> wire.Event:
        return wire.Event(
            seq=event.seq,
            stream=self.id,
            ns=event.ns,
            source=event.source,
            topic=event.topic,
            step=event.step,
            body=dict(event.body),
        )
