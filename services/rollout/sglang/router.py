"""SGLang's router before the servers: it has those whose weights are verified, and no other."""

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midflight.kernel.ports import free_port

from . import command
from .client import Client, Gone, Refused
from .process import Process

SETTLE_S = 60.0
"""Longest time until a change of its workers is in force."""
ASK_S = 10.0
LOOK_S = 0.1
WATCH_S = 0.5


class Router:
    """A launched router process, reached by `client`."""

    def __init__(self, client: Client, process: Process) -> None:
        self.client, self.process = client, process
        self.gone = asyncio.Event()
        """Set when it is closed."""

    @classmethod
    async def launch(cls, python: str, env: Mapping[str, str], log: Path, connections: int, limit_s: float) -> "Router":
        """Start it, without workers. Raises Gone when it does not answer in time."""
        port = free_port()
        process = await Process.launch(python, command.router(port, free_port()), env, log)
        router = cls(Client(f"http://127.0.0.1:{port}", connections), process)
        try:
            async with asyncio.timeout(limit_s):
                while not await router.answers():
                    if why := process.ended():
                        raise Gone(f"router: {why}")
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            await router.close()
            raise Gone(f"router: no answer within {limit_s:g} s: {process.tail()}") from None
        except BaseException:
            await router.close()
            raise
        return router

    async def watch(self, stall_s: float) -> None:
        """Raises Gone when the router ends, or does not answer for so long."""
        while not (why := self.process.ended()):
            await self.client.status("/liveness", stall_s)
            await asyncio.sleep(WATCH_S)
        raise Gone(f"router: {why}")

    async def close(self) -> None:
        """End it."""
        self.gone.set()
        await self.process.kill()
        await self.client.close()

    async def add(self, url: str) -> None:
        """Back when requests may reach the server. Raises Gone, Refused or TimeoutError."""
        await self.client.post("/workers", {"url": url}, ASK_S)
        async with asyncio.timeout(SETTLE_S):
            while not any(one["url"] == url and one.get("is_healthy", True) for one in await self.workers()):
                await asyncio.sleep(LOOK_S)

    async def remove(self, url: str) -> None:
        """Back when no new request reaches the server. Raises Gone, Refused or TimeoutError."""
        async with asyncio.timeout(SETTLE_S):
            while named := [one["id"] for one in await self.workers() if one["url"] == url]:
                for worker in named:
                    with contextlib.suppress(Refused):  # it is being removed already
                        await self.client.delete(f"/workers/{worker}", ASK_S)
                await asyncio.sleep(LOOK_S)

    async def workers(self) -> list[dict[str, Any]]:
        """What the router knows. Raises Gone or Refused."""
        found: list[dict[str, Any]] = (await self.client.get("/workers", ASK_S))["workers"]
        return found

    async def answers(self) -> bool:
        """Whether it lives and does not hang."""
        try:
            return await self.client.status("/liveness", ASK_S) == 200
        except Gone:
            return False
