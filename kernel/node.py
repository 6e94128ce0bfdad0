"""What every midflight process is: an identity, its mail, and one handler a message kind.

A node never blocks and never sleeps. The loop (or the in-memory network) hands it messages by `deliver` and gives it
`turn`s; it answers with the seconds it can do without the next one.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

from midflight.messages.base import Message
from midflight.messages.sockets import Incoming
from midflight.messages.wire import Received

from .mail import Bus, Mail

M = TypeVar("M", bound=Message)


class Letter(NamedTuple):
    """Where a message came from, for handlers that answer it."""

    port: str
    received: Received
    incoming: Incoming
    mail: Mail

    @property
    def sender(self) -> str:
        """Full identity name#generation."""
        return self.received.envelope.s

    @property
    def pid(self) -> int | None:
        """Process id of the sender as its socket tells it, if it does."""
        return self.incoming.pid

    def reply(self, message: Message) -> bool:
        """Answer the sender, correlated with its request, as part of its trace; also later than in the handler."""
        mail, envelope = self.mail, self.received.envelope
        ident = envelope.id
        to = envelope.s if self.port in mail.served else ""
        outer = mail.trace, mail.cause
        mail.trace, mail.cause = envelope.t or ident, ident
        sent = mail.send(self.port, message, to=to, correlation=ident)
        mail.trace, mail.cause = outer
        return sent


def handles(kind: type[M]) -> Callable[[Callable[[Any, M, Letter], None]], Callable[[Any, M, Letter], None]]:
    """Mark a method `(self, message, letter)` as the handler of one kind."""

    def mark(function: Callable[[Any, M, Letter], None]) -> Callable[[Any, M, Letter], None]:
        function.__dict__["handles"] = kind.KIND
        return function

    return mark


class Node:
    """Dispatch and mail. Subclasses add handlers and override `on_turn`."""

    HANDLERS: ClassVar[dict[str, str]] = {}
    SERVES: ClassVar[tuple[str, ...]] = ()
    """Ports this process binds; it answers there by peer identity."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        marked = (
            (name, getattr(f, "__dict__", {})) for base in reversed(cls.__mro__) for name, f in vars(base).items()
        )
        cls.HANDLERS = {found["handles"]: name for name, found in marked if "handles" in found}

    def __init__(self, identity: str, bus: Bus) -> None:
        self.identity, self.bus = identity, bus
        self.mail = Mail(identity, bus, served=self.SERVES)
        self.exit_code: int | None = None

    def deliver(self, port: str, incoming: Incoming) -> None:
        """One message from the transport."""
        received = self.mail.open(port, incoming)
        if received is None:
            return
        envelope = received.envelope
        name = self.HANDLERS.get(envelope.k)
        if name is None or not self.hears(envelope.k):
            self.mail.counters["unhandled" if name is None else "early"] += 1
            return
        mail, cause = self.mail, envelope.id
        mail.trace, mail.cause = envelope.t or cause, cause
        self.on_trace(mail.trace)
        getattr(self, name)(received.message, Letter(port, received, incoming, mail))
        mail.trace = mail.cause = None
        self.on_trace(None)

    def turn(self, now: float) -> float:
        """Do what is due; -> seconds until the next turn is needed (0: at once)."""
        self.mail.tick()
        return self.on_turn(now)

    def hears(self, kind: str) -> bool:
        """Whether messages of a kind are handled now."""
        return True

    def on_trace(self, trace: str | None) -> None:
        """A message of this trace is being handled now; None: no longer."""

    def on_turn(self, now: float) -> float:
        """Own work of the subclass, in small pieces."""
        return 0.1

    def watches(self) -> dict[int, Callable[[], None]]:
        """File descriptor -> what to call when it is readable."""
        return {}

    def leave(self, code: int) -> None:
        """End the process after this turn."""
        self.exit_code = code
