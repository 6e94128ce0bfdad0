"""The way through a router: one line that stays while routers die and are replaced.

A router holds nothing that cannot be made again. When it ends, or does not answer for `stall_s`, another is launched
and told the servers that serve; none of these is touched. What was under way through it is sent again.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable

from .client import Gone, Refused
from .life import Life
from .line import Line
from .outcome import Said, Tell
from .router import Router

STARTS = 3
"""Routers in a row that may fail to start, or to take one server, before the service is of no use."""
RETRY_S = 1.0


class Routed:
    """`make` launches a router; `serving` tells the servers it should have; `notify` wakes those who wait for one."""

    def __init__(
        self,
        make: Callable[[], Awaitable[Router]],
        serving: Callable[[], Iterable[Life]],
        tell: Tell,
        notify: Callable[[], Awaitable[None]],
        stall_s: float,
    ) -> None:
        self._make, self._serving, self._tell, self._notify, self._stall_s = make, serving, tell, notify, stall_s
        self.line: Line | None = None
        """There from the first router on."""
        self.router: Router | None = None
        """None while there is none that has the servers."""
        self._up = asyncio.Event()
        self._failed = 0

    async def keep(self) -> None:
        """One router after the other. Raises Gone when several in a row came to nothing."""
        while True:
            try:
                await self._one()
            except Gone as error:
                self._failed += 1
                if self._failed > STARTS:
                    raise
                self._tell(Said("warning", f"the router is replaced: {error}"))
            if self._failed > 1:
                await asyncio.sleep(RETRY_S)

    async def _one(self) -> None:
        """One router, until it is gone. Raises Gone."""
        router = await self._make()
        try:
            await self._fill(router)
            if self.line is None:
                self.line = Line(router.client)
            self.line.client, self.router, self._failed = router.client, router, 0
            self._up.set()
            await self._notify()
            await router.watch(self._stall_s)
        finally:
            self.router = None
            self._up.clear()
            if self.line:
                self.line.interrupt(died=False)
            await router.close()
            await self._notify()

    async def _fill(self, router: Router) -> None:
        """Tell a new router who serves; back in the very turn in which it has them all. Raises Gone."""
        known: set[str] = set()
        while (wanted := {life.client.url: life for life in self._serving()}).keys() != known:
            for url in known - wanted.keys():
                known.discard(url)
                with contextlib.suppress(Refused, TimeoutError):
                    await router.remove(url)
            for url in wanted.keys() - known:
                known.add(url)
                try:
                    await router.add(url)
                except (Gone, Refused, TimeoutError) as error:
                    if not await router.answers():
                        raise Gone(f"router: no answer when it was told of {url}: {error}") from error
                    wanted[url].fail(f"the router cannot reach it: {error}")

    async def enter(self, life: Life) -> None:
        """Let requests reach a server; it must be among `serving` in the same turn. Raises Gone, Refused or
        TimeoutError: the router lives, and the server cannot be reached by it.
        """
        while True:
            await self._up.wait()
            router, line = self.router, self.line
            assert router
            assert line
            life.join(line)
            try:
                await router.add(life.client.url)
            except (Gone, Refused, TimeoutError):
                if router is self.router and await router.answers():
                    raise
                await router.gone.wait()
            else:
                if router is self.router:
                    return

    async def leave(self, life: Life) -> None:
        """No request reaches it any more, and what was under way, wherever, is sent again."""
        if self.line:
            self.line.interrupt(died=not life.untrusted)
        if self.router:
            with contextlib.suppress(Gone, Refused, TimeoutError):
                await self.router.remove(life.client.url)
