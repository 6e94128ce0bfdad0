"""The way of a job to its completion, over as many servers as it takes.

A job goes to the server with the fewest, or to the router. When that is lost it goes to another; when there is no other
it is given back. A job that was at two servers when these died gets one for itself, and when that dies too the job is
refused: it is what kills them. So is one that is aborted again and again before its next token.

A reply that cannot be true condemns its server. Behind a router nobody says which one it was: then each is asked for
itself, and what answers so again is discarded.
"""

import asyncio
from collections import Counter

from midflight.services.rollout.request import Completion

from .client import Gone, Refused
from .job import Job
from .life import Life
from .line import Interrupted, Line
from .outcome import Lost
from .pool import Pool
from .reply import BadReply

SUSPECT = 2
"""Deaths of servers after which a job runs alone."""
TRIES = 8
"""Answers without use in a row after which a job is asked no more."""
PAUSE_S = 0.05
"""Before the second try; before each further one twice as long."""
ROUTER_AGAIN_S = 0.2
ROUTER_TRIES = 50
KNOWN = 10_000
"""Requests that are remembered with the servers that died of them, at most."""


class Drive:
    """The jobs of one pool. Each ends with one outcome: a completion, or Lost."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._deaths: Counter[int] = Counter()
        """By request: what is given back and comes again is still suspected."""
        self._asking = asyncio.Lock()
        """One job at a time has each server asked for itself."""

    async def job(self, job: Job) -> None:
        """Generate it and tell the outcome."""
        job.deaths = self._deaths.pop(job.request.id, 0)
        away = useless = 0
        while line := await self._line(job):
            alone, had, updates = line.solo is job, len(job.tokens), line.updates
            try:
                done = await self._once(job, line, last=useless == TRIES - 1)
            except Refused as error:
                if error.status < 500:
                    return self.pool.tell(Lost(job.request.id, str(error), refuse=True))
                away += 1  # the router's word: it lost the server, or has none at the moment
                if away == ROUTER_TRIES:
                    break
                await line.rest(ROUTER_AGAIN_S)
                continue
            except Interrupted as error:
                job.deaths += error.died
                if alone and error.died:
                    why = f"{job.deaths} servers died while they generated it, the last with nothing else in hand"
                    return self.pool.tell(Lost(job.request.id, why, refuse=True))
                continue
            if done:
                return self.pool.tell(done)
            if len(job.tokens) > had or line.updates > updates:
                useless = 0
                continue
            useless += 1
            if useless == TRIES:
                why = f"{line.client.url} aborted it {TRIES} times in a row without a token"
                return self.pool.tell(Lost(job.request.id, why, refuse=True))
            await line.rest(PAUSE_S * 2 ** (useless - 1))
        if job.deaths:
            if len(self._deaths) >= KNOWN:
                self._deaths.clear()
            self._deaths[job.request.id] = job.deaths
        self.pool.tell(Lost(job.request.id, "no server is ready"))
        return None

    async def _once(self, job: Job, line: Line, *, last: bool) -> Completion | None:
        """One request. Raises Interrupted when the server is lost, Refused when it, or the router, says no.

        last: a reply that cannot be true, and that no server behind the router owns to, is raised.
        """
        pool, life = self.pool, self.pool.life_of(line)
        behind = tuple(pool.serving.values())
        try:
            key = None
            if pool.config.pause == "in_place" and life:
                await line.calm.wait()
                key = str(life.version)
            return job.extend(await line.ask(job, key, pool.config.generate_timeout_s))
        except Gone as error:
            if life is None:
                raise Refused(str(error), 503) from error
            life.fail(str(error))
            raise Interrupted(str(error), died=True) from error
        except (BadReply, FloatingPointError) as error:
            if life:
                life.fail(str(error), untrusted=True)
                raise Interrupted(str(error), died=False) from error
            if last:
                raise
            await self._find(job, line, behind, error)
            return None
        except Refused as error:
            if life and error.status >= 500:
                life.fail(str(error))
                raise Interrupted(str(error), died=True) from error
            raise
        finally:
            line.flying.discard(job)
            if line.solo is job:
                line.solo = None
            await pool.notify()

    async def _find(self, job: Job, line: Line, behind: tuple[Life, ...], error: Exception) -> None:
        """Which of the servers behind a router gave the answer that `error` tells of? Raises Interrupted once one of
        them is out.
        """
        async with self._asking:
            if not any(life.failed.is_set() for life in behind):
                await asyncio.gather(*(self._judge(job, line, life) for life in behind))
        if any(life.failed.is_set() for life in behind):
            raise Interrupted(str(error), died=False) from error

    async def _judge(self, job: Job, line: Line, life: Life) -> None:
        """Ask one server past the router, and discard it for an answer that cannot be true."""
        try:
            await line.ask(job, None, self.pool.config.generate_timeout_s, past=life.client)
        except (BadReply, FloatingPointError) as error:
            life.fail(str(error), untrusted=True)
        except (Gone, Refused, Interrupted):
            pass  # whoever watches it sees to that

    async def _line(self, job: Job) -> Line | None:
        """Where the job flies now; None when nobody serves."""
        async with self.pool.news:
            while self.pool.serving:
                lines = self.pool.lines()  # none while the router is replaced
                if job.deaths < SUSPECT:
                    open_ = [line for line in lines if line.solo is None]
                else:
                    open_ = [line for line in lines if line.solo in (None, job)]
                if open_:
                    line = min(open_, key=lambda line: (line.solo is not job, len(line.flying)))
                    if job.deaths >= SUSPECT:
                        line.solo = job
                    if job.deaths < SUSPECT or not line.flying:
                        line.flying.add(job)
                        return line
                await self.pool.news.wait()
        if self.pool.routed and self.pool.routed.line and self.pool.routed.line.solo is job:
            self.pool.routed.line.solo = None
        return None
