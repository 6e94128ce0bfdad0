"""The numbered event stream and the snapshot for those who come late.

Whoever joins subscribes first, then asks for a page after 0: what is retained of the past and everything still in the
ring, as of one number. It takes the page and drops live events up to that number (the Clone pattern of the zguide).
A number that is missing later means: ask again after the last one taken. Nothing is ever resent by itself.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Generic, Literal, TypeVar

from midflight.messages.base import Scalar


@dataclass(frozen=True, slots=True)
class Event:
    """Fact number `seq`. `key` names what it replaces in the snapshot, empty for a passing fact; `ns` is wall clock."""

    seq: int
    topic: str
    key: str
    body: Mapping[str, Scalar]
    source: str = ""
    ns: int = 0
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Events in order; `newest` is the last number given so far.

    `gap` says that passing facts are missing, and the end of retained ones may be among them: whoever keeps a table
    from this stream starts it over from a page after 0.
    """

    events: tuple[Event, ...]
    newest: int
    gap: bool


class EventLog:
    """A bounded ring of the newest events, and the newest one of each (topic, key), however old.

    `first` is the number of the first event; a restarted kernel continues the numbers of its predecessor.
    """

    def __init__(self, capacity: int = 4096, retained: int = 4096, first: int = 1) -> None:
        self.newest = first - 1
        self.unretained = 0
        """How often the bound on retained keys was reached and a key's newest fact may be lost to late joiners."""
        self._limit = retained
        self._ring: deque[Event] = deque(maxlen=capacity)
        self._latest: dict[tuple[str, str], Event] = {}

    def publish(
        self,
        topic: str,
        body: Mapping[str, Scalar],
        *,
        key: str = "",
        source: str = "",
        ns: int = 0,
        step: int | None = None,
        final: bool = False,
    ) -> Event:
        """Number a fact. With a key it is retained until the next of the same topic and key, or until a `final` one."""
        self.newest += 1
        event = Event(self.newest, topic, key, body, source, ns, step)
        self._ring.append(event)
        if key:
            self._latest.pop((topic, key), None)
            if final:
                pass
            elif len(self._latest) < self._limit:
                self._latest[topic, key] = event
            else:
                self.unretained += 1
        return event

    def snapshot(self) -> Page:
        """The newest event of each key, oldest first, as of `newest`."""
        return Page(tuple(self._latest.values()), self.newest, False)

    def after(self, seq: int, limit: int) -> Page:
        """The next events after number `seq`, at most `limit`; repeat after the last one until `newest` is reached.

        Where the ring no longer reaches back, the retained events stand in for the missing ones. A `seq` that was
        never given (another stream) is answered from the start.
        """
        if seq > self.newest:
            seq = 0
        oldest = self._ring[0].seq if self._ring else self.newest + 1
        if seq + 1 >= oldest:
            return Page(tuple(islice(self._ring, seq + 1 - oldest, seq + 1 - oldest + limit)), self.newest, False)
        kept = (event for event in self._latest.values() if seq < event.seq < oldest)
        return Page(tuple(islice(chain(kept, self._ring), limit)), self.newest, True)


Verdict = Literal["ok", "gap", "old"]
T = TypeVar("T")


class Follower(Generic[T]):
    """A subscriber's book-keeping: take each number once and in order, and know when a page must be asked for.

    `stream` names the numbering; another one starts over. Events beyond a gap are held (the newest `hold`) until
    `fill` brings the numbers before them. `last`, set before the first event, may be of a stream that is gone: a page
    that ends before it tells.
    """

    def __init__(self, hold: int = 1024) -> None:
        self.last = 0
        self.stream = ""
        self.missing = True
        """Whether a page after `last` must be asked for."""
        self._joined = False
        self._held: dict[int, T] = {}
        self._hold = hold

    def accept(self, seq: int, stream: str = "") -> Verdict:
        """Judge one live number: `ok` is taken, `old` was taken before, `gap` means ask for a page."""
        self._meet(stream)
        if not self._joined or seq > self.last + 1:
            self.missing = True
            return "gap"
        if seq <= self.last:
            return "old"
        self.last = seq
        return "ok"

    def offer(self, seq: int, item: T, stream: str = "") -> list[T]:
        """Judge a live event and return what may be applied now, in order."""
        verdict = self.accept(seq, stream)
        if verdict == "gap":
            self._held[seq] = item
            while len(self._held) > self._hold:
                del self._held[min(self._held)]
        return [item, *self._release()] if verdict == "ok" else []

    def fill(self, items: Iterable[tuple[int, T]], newest: int, stream: str = "", complete: bool = True) -> list[T]:
        """Take a page asked for after `last`; -> what may be applied now, held events included, in order.

        `complete` False: the page ended before `newest`, so another one is needed.
        """
        self._meet(stream)
        if not self._joined and newest < self.last:
            self.last = 0
        self._joined = True
        out = []
        for seq, item in items:
            if seq > self.last:
                self.last = seq
                out.append(item)
        if complete:
            self.last = max(self.last, newest)
        self.missing = not complete
        return out + self._release()

    def behind(self, newest: int) -> bool:
        """Whether a number told elsewhere (a heartbeat's answer) shows that live events were lost at the end."""
        self.missing = self.missing or newest > self.last
        return self.missing

    def _meet(self, stream: str) -> None:
        """Start over when the stream is another one than before."""
        known, self.stream = self.stream, stream
        if known not in ("", stream):
            self.last, self.missing, self._joined, self._held = 0, True, False, {}

    def _release(self) -> list[T]:
        self._held = {seq: item for seq, item in self._held.items() if seq > self.last}
        out = []
        while self.last + 1 in self._held:
            self.last += 1
            out.append(self._held.pop(self.last))
        if self._held:
            self.missing = True
        return out
