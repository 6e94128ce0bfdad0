"""The way of a job to its completion, over as many servers as it takes.

A job goes to the server with the fewest, or to the router. When that is lost it goes to another; when there is no other
it is given back. A job that was at two servers when these died gets one for itself, and when that dies too the job is
refused: it is what kills them.
"""

import asyncio
from collections import Counter

from midflight.services.rollout.request import Completion

from .client import Gone, Refused
from .job import Job
from .line import Interrupted, Line
from .outcome import Lost
from .pool import Pool
from .reply import BadReply

SUSPECT = 2
"""Deaths of servers after which a job runs alone."""
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

    async def job(self, job: Job) -> None:
        """Generate it and tell the outcome."""
        job.deaths = self._deaths.pop(job.request.id, 0)
        tries = 0
        while line := await self._line(job):
            alone = line.solo is job
            try:
                done = await self._once(job, line)
            except Refused as error:
                if error.status < 500:
                    return self.pool.tell(Lost(job.request.id, str(error), refuse=True))
                tries += 1  # the router's word: it lost the server, or has none at the moment
                if tries == ROUTER_TRIES:
                    break
                await asyncio.sleep(ROUTER_AGAIN_S)
                continue
            except Interrupted as error:
                job.deaths += error.died
                if alone and error.died:
                    why = f"{job.deaths} servers died while they generated it, the last with nothing else in hand"
                    return self.pool.tell(Lost(job.request.id, why, refuse=True))
                continue
            if done:
                return self.pool.tell(done)
        if job.deaths:
            if len(self._deaths) >= KNOWN:
                self._deaths.clear()
            self._deaths[job.request.id] = job.deaths
        self.pool.tell(Lost(job.request.id, "no server is ready"))
        return None

    async def _once(self, job: Job, line: Line) -> Completion | None:
        """One request. Raises Interrupted when the server is lost, Refused when it, or the router, says no."""
        pool, life = self.pool, self.pool.life_of(line)
        try:
            key = None
            if pool.config.pause == "in_place" and life:
                await line.calm.wait()
                key = str(life.version)
            return job.extend(await line.ask(job, key, pool.config.generate_timeout_s))
        except (Gone, BadReply, FloatingPointError) as error:
            if life is None:
                if isinstance(error, Gone):
                    raise Refused(str(error), 503) from error
                raise
            life.fail(str(error), untrusted=not isinstance(error, Gone))
            raise Interrupted(str(error), isinstance(error, Gone)) from error
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
