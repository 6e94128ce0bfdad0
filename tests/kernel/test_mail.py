"""Mail: exactly one end for a request, resend until settled, bounds, and bad peers that are no longer heard."""

from dataclasses import dataclass, field

import pytest

from midflight.kernel import mail as module
from midflight.kernel.mail import BAD_MESSAGES, RESEND_S, Mail, OutboxFull
from midflight.kernel.node import Letter, Node, handles
from midflight.messages.control import Done, RunStop, StatusGet
from midflight.messages.sockets import Incoming
from midflight.messages.wire import Sealer, decode


@dataclass
class Wire:
    """A bus with a clock that stands still and a list of what was sent."""

    clock: float = 0.0
    sent: list[tuple[str, list[bytes], str]] = field(default_factory=list)

    def now(self) -> float:
        return self.clock

    def send(self, port: str, frames: list[bytes], to: str = "") -> bool:
        self.sent.append((port, frames, to))
        return True


def ask(mail: Mail, log: list[str]) -> str:
    """Send a request that logs its end; -> its id."""
    mail.request("ctl", StatusGet(), 1.0, lambda r: log.append(r.message.KIND), log.append, name="status")
    wire = mail.bus
    assert isinstance(wire, Wire)
    return decode(wire.sent[-1][1]).envelope.id


def test_a_request_ends_once() -> None:
    """The answer ends it; a second answer and the deadline then do nothing."""
    wire, log = Wire(), list[str]()
    mail = Mail("a#1", wire)
    ident = ask(mail, log)
    assert mail.waits() == [("status", 1.0)]
    answer = Sealer("kernel#1").seal("done", {}, correlation=ident)[1]
    assert mail.open("ctl", Incoming("", answer)) is None
    again = mail.open("ctl", Incoming("", answer))
    wire.clock = 2.0
    mail.tick()
    assert log == ["done"]
    assert again is not None  # no longer correlated: a handler may look at it, the request is over
    assert mail.waits() == []


def test_a_request_times_out_by_name() -> None:
    """No answer within the deadline: the caller is told what it waited for."""
    wire, log = Wire(), list[str]()
    mail = Mail("a#1", wire)
    ask(mail, log)
    wire.clock = 1.0
    mail.tick()
    assert log == ["no answer to status within its deadline"]


def test_a_post_is_resent_until_settled() -> None:
    """The same frames, at the resend interval and at once after a restart of the other side."""
    wire = Wire()
    mail = Mail("a#1", wire)
    mail.post("data", "k", RunStop(mode="drain", why="x"))
    mail.post("data", "k", RunStop(mode="kill", why="ignored: the key is on its way"))
    wire.clock = RESEND_S
    mail.tick()
    mail.resend("data")
    mail.tick()
    assert len(wire.sent) == 3
    assert len({tuple(frames) for _, frames, _ in wire.sent}) == 1
    assert mail.settle("k")
    assert not mail.settle("k")
    wire.clock = 10.0
    mail.tick()
    assert len(wire.sent) == 3


def test_the_outbox_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer whose receiver is away is told to wait, by count and by bytes."""
    monkeypatch.setattr(module, "OUTBOX_ENTRIES", 3)
    mail = Mail("a#1", Wire())
    for key in range(3):
        mail.post("data", key, StatusGet())
    with pytest.raises(OutboxFull, match="3 messages"):
        mail.post("data", 3, StatusGet())
    mail.settle(0)
    mail.post("data", 3, StatusGet())
    assert mail.unsettled("data") == 3


def test_a_peer_that_talks_nonsense_is_ignored_after_a_while() -> None:
    """Its messages are counted by reason, then not even decoded; others are heard."""
    mail = Mail("kernel#1", Wire(), served=("ctl",))
    for _ in range(BAD_MESSAGES):
        assert mail.open("ctl", Incoming("bad#1", [b"\x01\x80", b"\x80"])) is None
    fine = Sealer("bad#1").seal("status.get", {})[1]
    assert mail.open("ctl", Incoming("bad#1", fine)) is None
    assert mail.counters["bad.envelope"] == BAD_MESSAGES
    assert mail.counters["ignored"] == 1
    mail.forget("bad#1")
    assert mail.open("ctl", Incoming("bad#1", fine)) is not None


def test_a_spoofed_sender_and_another_major_are_refused() -> None:
    """The envelope must name the socket's own identity; another major gets the one fixed answer."""
    wire = Wire()
    mail = Mail("kernel#1", wire, served=("ctl",))
    assert mail.open("ctl", Incoming("a#1", Sealer("b#1").seal("status.get", {})[1])) is None
    assert mail.counters["bad.sender"] == 1
    other = Sealer("a#1").seal("status.get", {})[1]
    assert mail.open("ctl", Incoming("a#1", [b"\x02" + other[0][1:], other[1]])) is None
    assert wire.sent[-1][1][0][:1] == b"\x00"


class Server(Node):
    """Answers a status request later than in its handler."""

    SERVES = ("ctl",)
    letter: Letter | None = None

    @handles(StatusGet)
    def _on_get(self, message: StatusGet, letter: Letter) -> None:
        self.letter = letter


def test_an_answer_carries_the_trace_and_the_cause() -> None:
    """Also when it is sent in a later turn; a chain begins with the id of its first message."""
    wire = Wire()
    server = Server("kernel#1", wire)
    ident, frames = Sealer("a#1").seal("status.get", {})
    server.deliver("ctl", Incoming("a#1", frames))
    assert server.letter is not None
    server.letter.reply(Done())
    port, sent, to = wire.sent[-1]
    envelope = decode(sent).envelope
    assert (port, to, envelope.c, envelope.t, envelope.p) == ("ctl", "a#1", ident, ident, ident)


def test_handlers_of_every_base_are_heard() -> None:
    """A class of two, of which only the second handles a kind: a subclass of the first does not hide it."""

    class Asked(Node):
        @handles(StatusGet)
        def _on_status(self, message: StatusGet, letter: Letter) -> None:
            """Of the second base."""

    class Plain(Node):
        """Handles nothing."""

    class Both(Plain, Asked):
        @handles(RunStop)
        def _on_stop(self, message: RunStop, letter: Letter) -> None:
            """Its own."""

    assert {StatusGet.KIND: "_on_status", RunStop.KIND: "_on_stop"} == Both.HANDLERS
