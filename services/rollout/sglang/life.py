"""One life of one server, from its first readiness to the moment it is no longer trusted."""

import asyncio
import contextlib
import math
from typing import Any

import torch
from packaging.version import Version

from .client import Client, Gone, Refused
from .config import SglangConfig
from .group import Group
from .line import Line
from .offered import Offered
from .process import Process
from .reply import BadReply
from .updates import UpdateFailed, take_over, update

OLDEST = Version("0.5.21")
"""SGLang that has begin_weight_update and weight_versions."""
SPARE = 4
"""Tokens that a sequence may have beyond the longest prompt, `max_req_input_len`."""
LOOK_S = 0.5
LOAD_S = 1.0
PROBE_S = 30.0


class Unfit(RuntimeError):
    """The server cannot be used as it is, and asking it again will not help."""


class Life:
    """A server that answers, reached by `client`; `process` when it is ours. Its weights are unknown until `load`."""

    def __init__(self, client: Client, config: SglangConfig, process: Process | None) -> None:
        self.client, self.config, self.process = client, config, process
        self.line = self._own = Line(client)
        """Its own, or the router's."""
        self.version = -1
        """Of its verified weights; -1: none yet."""
        self.ranks = 1
        self.kv_use = 0.0
        """Share of its cache's places that running requests hold, as it last said."""
        self.failed = asyncio.Event()
        self.why = ""
        self.untrusted = False
        """It failed by what it did to its weights or tokens, not by dying."""
        self.entered = math.inf
        """When requests may first have reached it, by the loop's clock."""
        self._heard = 0.0
        """When it was last seen to work, by the loop's clock."""
        self._told = 0.0
        """Its own clock at the last load it told."""
        self.greeted = False
        """A server at a URL has answered as one of SGLang."""
        self._group: Group | None = None
        self._control = asyncio.Lock()

    def fail(self, why: str, *, untrusted: bool = False) -> None:
        """The first reason counts. Nothing that comes from it after this is used."""
        if not self.failed.is_set():
            self.why, self.untrusted = why, untrusted
            self.failed.set()
            self._own.interrupt(died=not untrusted)

    @property
    def barren(self) -> bool:
        """Whether it never served, or was discarded before a good answer came over its line."""
        return self.version < 0 or (self.untrusted and self.line.heard < self.entered)

    def join(self, line: Line) -> None:
        """Requests reach it over this line from now on: the router's."""
        line.verified |= self.line.verified
        self.line = line

    async def ready(self, limit_s: float) -> None:
        """Wait until it serves, and look whether it can be used. Raises Gone, Refused, BadReply or Unfit."""
        async with asyncio.timeout(limit_s):
            if self.process is None:
                await self._greet()
            else:
                await self._started(self.process)
            self._inspect(await self.client.get("/server_info", PROBE_S))

    async def _greet(self) -> None:
        """Begin with a server of somebody else's."""
        try:
            await self.client.weight_version(PROBE_S)  # of a stranger nothing is asked that changes it
            self.greeted = True
            await take_over(self.client)
        except Refused as error:
            if error.status not in (401, 403):
                raise
            named = self.config.api_key_env
            why = (
                f"does not accept the key that {named} holds"
                if named
                else "wants a key: name its variable in api_key_env"
            )
            raise Unfit(f"{self.client.url} {why} (HTTP {error.status})") from error
        await self.client.get("/health", PROBE_S)

    async def _started(self, process: Process) -> None:
        while True:
            if why := process.ended():
                raise Gone(why)
            with contextlib.suppress(Gone):
                if await self.client.status("/ready", PROBE_S) == 200:
                    process.settled()
                    return
            await asyncio.sleep(LOOK_S)

    def _inspect(self, info: Any) -> None:
        try:
            version = Version(str(info["version"]))
            self.ranks = int(info["tp_size"])
            copies, overlap = int(info["dp_size"]), not info["disable_overlap_schedule"]
            room = int(info["max_req_input_len"]) + SPARE
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            what = f"{type(error).__name__} {error} in {str(info)[:300]}"
            raise BadReply(f"{self.client.url}/server_info: {what}") from error
        if version < OLDEST:
            raise Unfit(f"{self.client.url}: SGLang {info['version']}; at least {OLDEST} is needed")
        if room < self.config.max_length:
            raise Unfit(
                f"{self.client.url}: sequences of {room} tokens at most, but max_length is {self.config.max_length}"
            )
        if self.config.transfer != "disk" and copies != 1:
            raise Unfit(f"{self.client.url}: dp_size {copies} takes weights from disk only: set transfer: disk")
        if self.config.pause == "in_place" and overlap:
            raise Unfit(f"{self.client.url}: pause in_place needs --disable-overlap-schedule, or mislabels a token")

    async def load(self, offered: Offered) -> bool:
        """Bring it to `offered`; False, and it has failed, when that did not work."""
        config = self.config
        async with self._control:
            with self.line.updating():
                try:
                    group = await self._joined() if config.transfer == "distributed" else None
                    await update(
                        self.client,
                        offered,
                        config.pause,
                        config.transfer,
                        config.update_timeout_s,
                        answer_s=config.stall_s,
                        group=group,
                        ranks=self.ranks,
                    )
                except UpdateFailed as error:
                    self.fail(str(error), untrusted=True)
                    return False
                self.version = offered.version
                self.line.verified.add(offered.version)
        return True

    async def watch(self) -> None:
        """Until it fails: look after its processes and its load, and probe it when it does not go on for long."""
        loop = asyncio.get_running_loop()
        self._heard = look_at = loop.time()
        while not self.failed.is_set():
            if self.process and (why := self.process.ended()):
                self.fail(why)
                return
            if loop.time() >= look_at:
                await self._look()
                look_at = loop.time() + LOAD_S
            if self.line is self._own:
                self._heard = max(self._heard, self.line.heard)
            if not self.line.flying:
                self._heard = loop.time()
            elif loop.time() - self._heard > self.config.stall_s:
                await self._probe()
                self._heard = loop.time()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.failed.wait(), LOOK_S)

    async def _look(self) -> None:
        """Read its load: the scheduler leaves that in memory as it goes on, so this disturbs nothing and is no probe.

        A server that does not tell it is no worse for that; SGLang older than 0.5.23 may not.
        """
        try:
            loads = (await self.client.get("/v1/loads?include=core", LOAD_S))["loads"]
            told = float(loads[0]["timestamp"])
            self.kv_use = max(float(one["token_usage"]) for one in loads)
        except (Gone, Refused, BadReply, LookupError, TypeError, ValueError, OverflowError):
            return
        if told != self._told:
            self._told, self._heard = told, asyncio.get_running_loop().time()

    async def _probe(self) -> None:
        """Have it generate one token; never while it is paused, when that would block and mark it as ill."""
        async with self._control:
            try:
                await self.client.get("/health", PROBE_S)
            except (Gone, Refused, BadReply) as error:
                self.fail(f"it has not gone on for {self.config.stall_s:g} s, nor answered a probe: {error}")

    async def _joined(self) -> Group:
        """The process group with it, made at its first update."""
        if self._group is None:
            device = torch.device("cuda" if torch.cuda.is_available() and self.config.device != "cpu" else "cpu")
            group = Group(self.ranks, device, self.config.update_timeout_s)
            join = asyncio.get_running_loop().run_in_executor(None, group.join)
            try:
                await self.client.post("/init_weights_update_group", group.invitation(), self.config.update_timeout_s)
                await join
            except (Gone, Refused, RuntimeError) as error:
                raise UpdateFailed(f"no process group with {self.client.url}: {error}") from error
            self._group = group
        return self._group

    async def close(self) -> None:
        """Leave it: ours is killed, another's is told to end what it still generates for us."""
        if self._group:
            self._group.close()
        if self.process:
            await self.process.kill()
        elif self.greeted:
            with contextlib.suppress(Gone, Refused, BadReply):
                await take_over(self.client)
