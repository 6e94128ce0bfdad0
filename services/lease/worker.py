"""An actor that works under lease: the handlers every stage has in common."""

from typing import ClassVar

from midflight.kernel.actor import Actor
from midflight.kernel.mail import Bus
from midflight.kernel.node import Letter, handles
from midflight.messages.samples import Ok, Stage, WantOk
from midflight.messages.sockets import Role

from .holding import Holding

WAITS_FOR: dict[Stage, str] = {"generate": "tickets", "score": "score jobs", "train": "batch"}


class Worker(Actor):
    """Keeps its `holding` in step with the ledger's answers. Subclasses take work and hand it in."""

    PORTS: ClassVar[dict[str, Role]] = {"ctl": "dealer", "data": "dealer"}
    STAGE: ClassVar[Stage]

    def __init__(self, identity: str, bus: Bus) -> None:
        super().__init__(identity, bus)
        self.holding = Holding(self.STAGE, self.mail)

    def works(self) -> bool:
        """A paused worker finishes what it holds; a learner, whose piece of work is a step, begins no other."""
        stopped = self.paused and self.STAGE == "train" and not self.draining
        return self.role != "standby" and not stopped

    def on_role(self) -> None:
        """Paused, or not yet in force: ask for no more."""
        self.holding.closed = self.paused or self.role == "standby"
        if self.ready:
            self.want()

    def idle(self) -> bool:
        """Nothing is held."""
        return not self.holding.held

    def want(self) -> None:
        """Say what is held and how much more is taken."""
        raise AssertionError("a worker says how much it wants")

    def on_turn(self, now: float) -> float:
        """Repeat the want when it is due, then what every actor does."""
        if self.ready and now >= self.holding.next_want:
            self.want()
            self._show_wait()
        return super().on_turn(now)

    def lacks_work(self) -> bool:
        """Whether only the ledger keeps it waiting."""
        return not self.holding.held and not self.draining and not self.holding.closed

    def _show_wait(self) -> None:
        """An empty-handed worker waits for the ledger, as long as that lives."""
        if not self.lacks_work():
            self.waited(WAITS_FOR[self.STAGE])
        else:
            self.waiting(WAITS_FOR[self.STAGE], None)

    def on_drain(self) -> None:
        """Take no more."""
        self.want()

    @handles(Ok)
    def _on_ok(self, message: Ok, letter: Letter) -> None:
        self.holding.answered(message)

    @handles(WantOk)
    def _on_want_ok(self, message: WantOk, letter: Letter) -> None:
        self.holding.heard(message)
