"""Topic events: one numbered stream of what happened, with a snapshot for those who come late."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from .base import Count, Flat, Message

Topic = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[a-z][a-z_.]*$")]

StreamId = Annotated[
    str,
    Field(max_length=16, description="names the numbering: it begins anew, under another name, with a lost journal"),
]


class Post(Message):
    """Service to kernel: put this into the stream. Resent until `event.ok`; a repeat has no effect."""

    KIND: ClassVar[str] = "event.post"
    EXAMPLE: ClassVar[dict[str, Any]] = {"key": 17, "topic": "metrics", "step": 41, "body": {"reward": 0.61}}
    key: Annotated[Count, Field(description="number of this post at its sender, for deduplication")]
    topic: Topic
    step: Annotated[Count | None, Field(description="learner step it belongs to")] = None
    body: Flat


class PostOk(Message):
    """Kernel to poster: journaled and published up to and including this key."""

    KIND: ClassVar[str] = "event.ok"
    EXAMPLE: ClassVar[dict[str, Any]] = {"key": 17}
    key: Count


class Event(Message):
    """Kernel to everyone who listens: event number `seq`."""

    KIND: ClassVar[str] = "event"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "seq": 1204, "stream": "51c3", "ns": 1790000000000000000, "source": "learner#1", "topic": "metrics", "step": 41,
        "body": {"reward": 0.61},
    }  # fmt: skip
    seq: Count
    stream: StreamId
    ns: Annotated[Count, Field(description="wall clock, ns, for people only")]
    source: Annotated[str, Field(max_length=80)]
    topic: Topic
    step: Count | None = None
    body: Flat


class EventsGet(Message):
    """Subscriber to kernel: I missed something; give me what came after `after` (0: a snapshot is enough)."""

    KIND: ClassVar[str] = "events.get"
    EXAMPLE: ClassVar[dict[str, Any]] = {"after": 1200, "limit": 200}
    after: Count
    limit: Annotated[int, Field(ge=1, le=500)] = 200


class Events(Message):
    """Kernel to subscriber: events in order; `gap` says that older ones are no longer in memory."""

    KIND: ClassVar[str] = "events"
    EXAMPLE: ClassVar[dict[str, Any]] = {"stream": "51c3", "events": [], "newest": 1204, "gap": False}
    stream: StreamId
    events: Annotated[list[Event], Field(max_length=500)]
    newest: Count
    gap: bool


KINDS = (Post, PostOk, Event, EventsGet, Events)
