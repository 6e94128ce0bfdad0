"""Following the event stream without a hole: subscribe, ask for what came before, then take each number once."""

from collections.abc import Callable

from midflight.messages.events import Event, Events, EventsGet
from midflight.messages.wire import Received

from .events import Follower
from .mail import Mail

ASK_S = 2.0


class Follow:
    """Hands every event after number `last` to `take`, in order, exactly once.

    Live events come by a SUB socket that may drop them; a hole is filled by asking the kernel.
    """

    def __init__(self, mail: Mail, take: Callable[[Event], None], last: int = 0) -> None:
        self.mail, self.take = mail, take
        self._follower: Follower[Event] = Follower()
        self._follower.last = last
        self._asking = False

    @property
    def last(self) -> int:
        """Number of the last event taken."""
        return self._follower.last

    @last.setter
    def last(self, number: int) -> None:
        """Begin after this one."""
        self._follower.last = number

    def live(self, event: Event) -> None:
        """An event from the subscription."""
        for ready in self._follower.offer(event.seq, event, event.stream):
            self.take(ready)
        self._ask()

    def catch_up(self, newest: int) -> None:
        """The kernel told its newest number: ask for what is missing."""
        if newest > self.last and self._follower.behind(newest):
            self._ask()

    def _ask(self) -> None:
        if self._follower.missing and not self._asking:
            self._asking = True
            self.mail.request("ctl", EventsGet(after=self.last), ASK_S, self._filled, self._unfilled, name="events")

    def _filled(self, received: Received) -> None:
        self._asking = False
        page = received.message
        if not isinstance(page, Events):
            return
        complete = not page.events or page.events[-1].seq >= page.newest
        items = ((event.seq, event) for event in page.events)
        for ready in self._follower.fill(items, page.newest, page.stream, complete):
            self.take(ready)
        self._ask()

    def _unfilled(self, why: str) -> None:
        self._asking = False
