"""One life of one server, from its first readiness to the moment it is no longer trusted."""

import asyncio
import contextlib
from typing import Any

import torch

from .client import Client, Gone, Refused
from .config import SglangConfig
from .group import Group
from .line import Line
from .offered import Offered
from .process import Process
from .reply import BadReply
from .updates import UpdateFailed, take_over, update

OLDEST = (0, 5, 21)
"""SGLang that has begin_weight_update and weight_versions."""
SPARE = 4
"""Tokens that a sequence may have beyond the longest prompt, `max_req_input_len`."""
LOOK_S = 0.5
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
        self.failed = asyncio.Event()
        self.why = ""
        self.untrusted = False
        """It failed by what it did to its weights or tokens, not by dying."""
        self._group: Group | None = None
        self._control = asyncio.Lock()

    def fail(self, why: str, *, untrusted: bool = False) -> None:
        """The first reason counts. Nothing that comes from it after this is used."""
        if not self.failed.is_set():
            self.why, self.untrusted = why, untrusted
            self.failed.set()
            self._own.interrupt(died=not untrusted)

    def join(self, line: Line) -> None:
        """Requests reach it over this line from now on: the router's."""
        line.verified |= self.line.verified
        self.line = line

    async def ready(self, limit_s: float) -> None:
        """Wait until it serves, and look whether it can be used. Raises Gone, Refused, BadReply or Unfit."""
        async with asyncio.timeout(limit_s):
            if self.process is None:
                await take_over(self.client)
                await self.client.get("/health", PROBE_S)
            else:
                await self._started(self.process)
            self._inspect(await self.client.get("/server_info", PROBE_S))

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
            version = tuple(int(part) for part in str(info["version"]).split(".")[:3] if part.isdigit())
            self.ranks = int(info["tp_size"])
            copies, overlap = int(info["dp_size"]), not info["disable_overlap_schedule"]
            room = int(info["max_req_input_len"]) + SPARE
        except (KeyError, TypeError, ValueError) as error:
            raise BadReply(f"{self.client.url}/server_info: {type(error).__name__} {error}") from error
        if version < OLDEST:
            raise Unfit(f"{self.client.url}: SGLang {info['version']}; at least {'.'.join(map(str, OLDEST))} is needed")
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
                    limit = config.update_timeout_s
                    await update(
                        self.client, offered, config.pause, config.transfer, limit, group=group, ranks=self.ranks
                    )
                except UpdateFailed as error:
                    self.fail(str(error), untrusted=True)
                    return False
                self.version = offered.version
                self.line.verified.add(offered.version)
        return True

    async def watch(self) -> None:
        """Until it fails: look after its processes, and probe it when it says nothing for long."""
        loop = asyncio.get_running_loop()
        self.line.heard = loop.time()
        while not self.failed.is_set():
            if self.process and (why := self.process.ended()):
                self.fail(why)
            elif not self.line.flying:
                self.line.heard = loop.time()
            elif loop.time() - self.line.heard > self.config.stall_s:
                await self._probe()
                self.line.heard = loop.time()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.failed.wait(), LOOK_S)

    async def _probe(self) -> None:
        """Have it generate one token; never while it is paused, when that would block and mark it as ill."""
        async with self._control:
            try:
                await self.client.get("/health", PROBE_S)
            except (Gone, Refused) as error:
                self.fail(f"it has not answered for {self.config.stall_s:g} s, nor a probe: {error}")

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
        else:
            with contextlib.suppress(Gone, Refused):
                await take_over(self.client)
