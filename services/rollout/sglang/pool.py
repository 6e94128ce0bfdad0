"""The servers of one rollout: opened, given the weights that are wanted, used while they can be trusted, replaced.

Runs in one asyncio loop. What the jobs among them do is in `drive`.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from midflight.kernel.mistake import UserMistake

from .client import Gone, Refused
from .config import SglangConfig
from .known import REMEDY, Known
from .life import Life, Unfit
from .line import Line
from .offered import Offered, forget
from .outcome import Said, Tell
from .places import Place
from .reply import BadReply
from .routed import Routed
from .router import Router

STARTS = 3
"""Servers in a row that may fail to start, or to give one good answer, before a place is given up."""
RETRY_S = (0.5, 5.0, 15.0)
"""Pause after so many of them."""


class Pool:
    """`places` are opened and kept open, behind a router if there is a way to make one; `tell` hears what happens."""

    def __init__(
        self,
        config: SglangConfig,
        places: list[Place],
        make_router: Callable[[], Awaitable[Router]] | None,
        tell: Tell,
        known: Known,
    ) -> None:
        self.config, self.places, self.tell, self.known = config, places, tell, known
        self.routed: Routed | None = None
        """The way to them all, where requests go through a router."""
        if make_router:
            self.routed = Routed(make_router, lambda: self.serving.values(), tell, self.notify, config.stall_s)
        self.serving: dict[Place, Life] = {}
        """Servers with verified weights."""
        self.opened = False
        """Whether a server has ever answered, so that weights are of use."""
        self.news = asyncio.Condition()
        """Told when servers, their load or the target change."""
        self._given_up: dict[Place, str] = {}
        """And why."""
        self._target: Offered | None = None
        self._loading: Counter[int] = Counter()

    @property
    def version(self) -> int:
        """Every server that serves has this version or a newer one; -1 when none does."""
        return min((life.version for life in self.serving.values()), default=-1)

    @property
    def kv_use(self) -> float:
        """Share of the cache in use at the server where it is fullest. Any thread may ask."""
        return max((life.kv_use for life in tuple(self.serving.values())), default=0.0)

    def lines(self) -> list[Line]:
        """Where a job may be sent now."""
        if self.routed:
            return [self.routed.line] if self.routed.router and self.routed.line and self.serving else []
        return [life.line for life in self.serving.values() if not life.failed.is_set()]

    def life_of(self, line: Line) -> Life | None:
        """The server at the end of a line; None for the router's, which has several."""
        if self.routed:
            return None
        return next((life for life in self.serving.values() if life.line is line), None)

    async def offer(self, offered: Offered) -> None:
        """Bring every server to these weights."""
        self._target = offered
        await self.notify()

    async def notify(self) -> None:
        """Something that somebody may wait for has changed."""
        async with self.news:
            self.news.notify_all()

    async def run(self) -> None:
        """Until cancelled. Raises UserMistake: an unfit server, or none at a URL; RuntimeError or Gone: no server, no
        router.
        """
        async with asyncio.TaskGroup() as tasks:
            if self.routed:
                tasks.create_task(self.routed.keep())
            for place in self.places:
                tasks.create_task(self._keep(place))

    async def _keep(self, place: Place) -> None:
        """One server after the other in one place."""
        failed = 0
        while True:
            life: Life | None = None
            try:
                async with place.open() as life:
                    await life.ready(self.config.start_timeout_s)
                    self._opened(place)
                    await self._serve(place, life)
                why = life.why
            except (Gone, Refused, BadReply, TimeoutError, OSError) as error:
                why = str(error) or "not ready in time"
                if not place.ours:
                    why = self.known.reason(place.name, error, greeted=bool(life and life.greeted))
                self.tell(Said("warning", f"{place.name} did not start: {why}"))
            except Unfit as error:
                raise UserMistake(f"sglang: {error}") from error
            failed = failed + 1 if life is None or life.barren else 0
            if failed == STARTS or (life and life.untrusted and not place.ours):
                return self._give_up(place, why)
            await asyncio.sleep(RETRY_S[failed])

    def _opened(self, place: Place) -> None:
        self.opened = True
        if not place.ours:
            self.known.add(place.name)

    def _give_up(self, place: Place, why: str) -> None:
        """When no place is left raises UserMistake: there was never a server at any URL; else RuntimeError."""
        self._given_up[place] = why
        self.tell(Said("error", f"{place.name} is given up: {why}"))
        if len(self._given_up) < len(self.places):
            return
        if not place.ours and not any(one.name in self.known for one in self.places):
            raise UserMistake(f"sglang: {'; '.join(self._given_up.values())} - {REMEDY}")
        each = "; ".join(f"{one.name}: {last}" for one, last in self._given_up.items())
        raise RuntimeError(f"sglang: no server is left: {each}")

    async def _serve(self, place: Place, life: Life) -> None:
        """Until it fails: load what is wanted, and let it work once that is verified."""
        async with self._watched(place, life):
            while offered := await self._wanted(life):
                self._loading[offered.version] += 1
                loaded = await life.load(offered)
                self._loading[offered.version] -= 1
                if not loaded:
                    return
                if self._target:
                    forget(offered.folder.parent, {self._target.version, *(+self._loading)})
                if place not in self.serving:
                    await self._enter(place, life)
                self.tell(Said("debug", f"{place.name} has version {life.version}"))

    @asynccontextmanager
    async def _watched(self, place: Place, life: Life) -> AsyncIterator[None]:
        """Looked after meanwhile, and out of use afterwards."""
        watch = asyncio.ensure_future(life.watch())
        watch.add_done_callback(lambda task: None if task.cancelled() else life.fail(f"unwatched: {task.exception()}"))
        try:
            yield
        finally:
            watch.cancel()
            life.fail("the rollout ends")
            if self.serving.pop(place, None) and self.routed:
                await self.routed.leave(life)
            self.tell(Said("warning", f"{place.name} is out of use: {life.why}"))
            await self.notify()

    async def _wanted(self, life: Life) -> Offered | None:
        """The newest weights, when it has older ones; None once it has failed."""
        failed = asyncio.ensure_future(life.failed.wait())
        failed.add_done_callback(lambda task: task.cancelled() or asyncio.ensure_future(self.notify()))
        try:
            async with self.news:
                while not life.failed.is_set():
                    if self._target and self._target.version > life.version:
                        return self._target
                    await self.news.wait()
        finally:
            failed.cancel()
        return None

    async def _enter(self, place: Place, life: Life) -> None:
        """Let requests reach it."""
        if self.routed:
            await self.routed.enter(life)
        self.serving[place], life.entered = life, asyncio.get_running_loop().time()
        self.tell(Said("info", f"{place.name} serves at {life.client.url} from version {life.version} on"))
        await self.notify()
