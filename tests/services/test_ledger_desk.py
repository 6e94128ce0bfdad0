"""What the ledger's counter says, and what it must not say yet."""

from dataclasses import dataclass, field

from support.ledger_tools import LEARNER, book, generate, score, take

from midflight.kernel.node import Letter
from midflight.messages.base import Message
from midflight.messages.samples import Commit, Committed
from midflight.messages.sockets import Incoming
from midflight.messages.wire import Sealer, dump
from midflight.services.ledger.desk import Desk


@dataclass
class NoBus:
    """Nothing leaves."""

    sent: list[list[bytes]] = field(default_factory=list)

    def now(self) -> float:
        return 0.0

    def send(self, port: str, frames: list[bytes], to: str = "") -> bool:
        self.sent.append(frames)
        return True


class Counter(Desk):
    """A desk whose replies can be read."""

    def __init__(self) -> None:
        super().__init__("ledger#1", NoBus())
        self.said: list[Message] = []
        self.kind_of = lambda name: name

    def reply(self, letter: Letter, message: Message) -> None:
        self.said.append(message)


def test_a_commit_that_overtakes_its_step_is_not_confirmed() -> None:
    """`committed` is said only of steps whose `trained` has arrived; the learner forgets their samples at that word."""
    desk, sealer = Counter(), Sealer(LEARNER)
    desk.book, desk.started = book(), True
    generate(desk.book)
    score(desk.book)
    leases = take(desk.book, "train")
    commit = Commit(step=1, digest="0" * 32)

    def send() -> None:
        desk.deliver("data", Incoming(LEARNER, sealer.seal(Commit.KIND, dump(commit))[1]))

    send()
    assert desk.said == []
    desk.book.trained(leases, 1, LEARNER)
    send()
    assert desk.said == [Committed(step=1)]
    send()
    assert desk.said == [Committed(step=1)] * 2
