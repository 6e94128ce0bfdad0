"""Where requests go and answers come from: one server, or a router before several."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .client import Client
from .job import Job
from .reply import BadReply, Piece, parse

_NUMBER = itertools.count()
_PROCESS = os.urandom(4).hex()


class Interrupted(ConnectionError):
    """Whatever comes back on this line is not to be trusted, or, with `died`, nothing will."""

    def __init__(self, text: str, died: bool) -> None:
        super().__init__(text)
        self.died = died


class _Break(asyncio.Event):
    """Set when a line is interrupted."""

    died = False


def request_id(sample: int) -> str:
    """Of one length always: SGLang aborts every request whose id begins with the one it is given."""
    return f"mf-{_PROCESS}-{sample:016x}-{next(_NUMBER):012x}"


@dataclass(slots=True, eq=False)
class Line:
    """A client, the jobs sent over it, and the versions that a token coming back may carry."""

    client: Client
    verified: set[int] = field(default_factory=set)
    flying: set[Job] = field(default_factory=set)
    solo: Job | None = None
    """A job suspected of killing servers, which has this line to itself."""
    heard: float = 0.0
    """When the last answer came, by the loop's clock."""
    calm: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no weights are on their way."""
    updates: int = 0
    """How many have begun."""
    _updating: int = 0
    _broken: _Break = field(default_factory=_Break)

    def __post_init__(self) -> None:
        self.calm.set()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Not calm meanwhile."""
        self.updates += 1
        self._updating += 1
        self.calm.clear()
        try:
            yield
        finally:
            self._updating -= 1
            if not self._updating:
                self.calm.set()

    def interrupt(self, died: bool) -> None:
        """Everything under way raises Interrupted."""
        self._broken.died = died
        self._broken.set()
        self._broken = _Break()

    async def rest(self, pause_s: float) -> None:
        """Until it is interrupted, but no longer than so many seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._broken.wait(), pause_s)

    async def ask(self, job: Job, cache_key: str | None, limit_s: float, past: Client | None = None) -> Piece:
        """What a server makes of the job, reached through `past` if that is given, past the router.

        Raises Interrupted, Gone, Refused, BadReply or FloatingPointError.
        """
        client = past or self.client
        broken, loop = self._broken, asyncio.get_running_loop()
        body = job.body(request_id(job.request.id), cache_key)
        reply = asyncio.ensure_future(client.post("/generate", body, limit_s, job.room))
        watch = asyncio.ensure_future(broken.wait())
        try:
            await asyncio.wait({reply, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not broken.is_set():
                piece = parse(reply.result(), job.vocabulary, job.room)
                job.check(piece)
                self.heard = loop.time()
                # The last tokens may be of weights that are just being verified.
                settled = asyncio.ensure_future(self.calm.wait())
                await asyncio.wait({settled, watch}, return_when=asyncio.FIRST_COMPLETED)
                settled.cancel()
            if broken.is_set():
                raise Interrupted(f"{client.url}: interrupted", broken.died)
        finally:
            watch.cancel()
            reply.cancel()
            if reply.done() and not reply.cancelled():
                reply.exception()  # looked at, even when interrupted
        unknown = set(piece.versions) - self.verified
        if unknown:
            raise BadReply(f"{client.url}: tokens of weight versions {sorted(unknown)}, which were never verified")
        return piece
