"""A process's mail: numbered sending, requests with deadlines, and an outbox that resends until acknowledged.

Three ways to send, three promises:

* `send`     at most once; for what is repeated anyway (heartbeats, wants);
* `request`  an answer, a refusal or a timeout, exactly one of them, each under a name and a deadline;
* `post`     at least once: kept and resent until `settle(key)`; the receiver makes the effect idempotent.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from midflight.messages.base import Message
from midflight.messages.sockets import Incoming
from midflight.messages.tensors import Column
from midflight.messages.wire import Received, Sealer, WireError, decode, dump, is_reject, reject_frame

RESEND_S: Final = 0.5
OUTBOX_ENTRIES: Final = 10_000
OUTBOX_BYTES: Final = 256 << 20
BAD_MESSAGES: Final = 50
"""So many refused messages from one peer and it is no longer decoded."""
BAD_PEERS: Final = 4096
"""So many peers are judged at a time."""


class Bus(Protocol):
    """The transport as a process sees it: real sockets, or the in-memory network."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def send(self, port: str, frames: list[bytes], to: str = "") -> bool:
        """Queue frames; False when the peer is unknown or full and nothing was sent.

        True too while messages are being delivered: what they give rise to leaves after them. Who must know whether
        it was sent sends in its turn.
        """
        ...


class OutboxFull(RuntimeError):
    """The outbox reached its bound: whoever produces must wait."""


@dataclass(slots=True)
class _Pending:
    name: str
    deadline: float
    then: Callable[[Received], None]
    otherwise: Callable[[str], None]


@dataclass(slots=True)
class _Post:
    port: str
    frames: list[bytes]
    due: float
    size: int
    resent: bool = False


class Mail:
    """Sends and keeps book; the owner calls `tick` in every turn."""

    def __init__(self, identity: str, bus: Bus, served: tuple[str, ...] = ()) -> None:
        self.identity, self.bus, self.served = identity, bus, served
        self.counters: Counter[str] = Counter()
        self.trace: str | None = None
        """Id of the message that began the chain of causes now being handled; it goes into every log record."""
        self.cause: str | None = None
        self._sealer = Sealer(identity)
        self._pending: dict[str, _Pending] = {}
        self._outbox: dict[Hashable, _Post] = {}
        self._outbox_bytes = 0
        self._bad: Counter[str] = Counter()

    def send(
        self,
        port: str,
        message: Message,
        *,
        to: str = "",
        correlation: str | None = None,
        columns: Iterable[Column] = (),
    ) -> bool:
        """Queue one message, once."""
        return self.bus.send(port, self._seal(message, correlation, columns)[1], to)

    def request(
        self,
        port: str,
        message: Message,
        deadline_s: float,
        then: Callable[[Received], None],
        otherwise: Callable[[str], None],
        *,
        name: str = "",
        to: str = "",
        columns: Iterable[Column] = (),
    ) -> None:
        """Send and wait: `then(answer)`, or `otherwise(why)` after the deadline."""
        ident, frames = self._seal(message, None, columns)
        self._pending[ident] = _Pending(name or message.KIND, self.bus.now() + deadline_s, then, otherwise)
        self.bus.send(port, frames, to)

    def post(self, port: str, key: Hashable, message: Message, *, columns: Iterable[Column] = ()) -> None:
        """Send until settled. A key that is already on its way keeps its first message.

        Raises:
            OutboxFull: the bound on entries or bytes is reached.
        """
        if key in self._outbox:
            return
        frames = self._seal(message, None, columns)[1]
        size = sum(map(len, frames))
        if len(self._outbox) >= OUTBOX_ENTRIES or self._outbox_bytes + size > OUTBOX_BYTES:
            raise OutboxFull(f"{self.identity}: {len(self._outbox)} messages, {self._outbox_bytes} B unacknowledged")
        self._outbox[key] = _Post(port, frames, self.bus.now() + RESEND_S, size)
        self._outbox_bytes += size
        self.bus.send(port, frames)

    def settle(self, key: Hashable) -> bool:
        """The receiver committed (or declared stale) what was posted under this key."""
        post = self._outbox.pop(key, None)
        if post:
            self._outbox_bytes -= post.size
        return post is not None

    def unsettled(self, port: str | None = None) -> int:
        """How many posts wait for an acknowledgement."""
        return sum(port is None or post.port == port for post in self._outbox.values())

    def resend(self, port: str) -> None:
        """Send all unsettled posts of a port again: its other end was restarted."""
        for post in self._outbox.values():
            if post.port == port:
                post.due = 0.0

    def waits(self) -> list[tuple[str, float | None]]:
        """(name, seconds left) of every open request; the posts together, which wait as long as the run lives."""
        now = self.bus.now()
        asked: list[tuple[str, float | None]] = [(p.name, p.deadline - now) for p in self._pending.values()]
        late = sum(post.resent for post in self._outbox.values())
        return [*asked, (f"acknowledgement of {late} messages", None)] if late else asked

    def tick(self) -> None:
        """Resend what is due, end what timed out."""
        now = self.bus.now()
        for post in self._outbox.values():
            if post.due <= now:
                post.due, post.resent = now + RESEND_S, True
                self.counters["resent"] += 1
                self.bus.send(post.port, post.frames)
        for ident in [ident for ident, pending in self._pending.items() if pending.deadline <= now]:
            pending = self._pending.pop(ident)
            pending.otherwise(f"no answer to {pending.name} within its deadline")

    def open(self, port: str, incoming: Incoming) -> Received | None:
        """Decode, check the sender, count refusals. None when the message is not for a handler."""
        if incoming.sender and self._bad.get(incoming.sender, 0) >= BAD_MESSAGES:
            self.counters["ignored"] += 1
            return None
        if is_reject(incoming.frames):
            self.counters["rejected_by_peer"] += 1
            return None
        try:
            received = decode(incoming.frames)
            if incoming.sender and received.envelope.s != incoming.sender:
                raise WireError("sender", f"{received.envelope.s} speaking as {incoming.sender}")
        except WireError as error:
            self.counters[f"bad.{error.reason}"] += 1
            self._bad[incoming.sender] += 1
            if len(self._bad) > BAD_PEERS:  # names cost a stranger nothing: forget rather than grow
                self._bad.clear()
            if error.reason == "major" and incoming.sender:
                self.bus.send(port, [reject_frame()], incoming.sender)
            return None
        if received.envelope.c and (pending := self._pending.pop(received.envelope.c, None)):
            pending.then(received)
            return None
        return received

    @property
    def refused(self) -> int:
        """Messages that reached no handler: malformed, of a false sender, or of a peer no longer listened to."""
        return sum(n for reason, n in self.counters.items() if reason.startswith("bad.") or reason == "ignored")

    def forget(self, sender: str) -> None:
        """A peer is gone for good: forget its count of bad messages."""
        self._bad.pop(sender, None)

    def _seal(self, message: Message, correlation: str | None, columns: Iterable[Column]) -> tuple[str, list[bytes]]:
        return self._sealer.seal(
            message.KIND, dump(message), columns=columns, correlation=correlation, trace=self.trace, cause=self.cause
        )
