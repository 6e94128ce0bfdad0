"""SGLang's router before the servers: it has those whose weights are verified, and no other."""

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import command
from .client import Client, Gone, Refused
from .line import Line
from .process import Process, free_port

SETTLE_S = 60.0
"""Longest time until a change of its workers is in force."""
ASK_S = 10.0
LOOK_S = 0.1


class Router:
    """A launched router process and the line that leads through it."""

    def __init__(self, client: Client, process: Process) -> None:
        self.line, self.process = Line(client), process

    @classmethod
    async def launch(cls, python: str, env: Mapping[str, str], log: Path, connections: int, limit_s: float) -> "Router":
        """Start it, without workers. Raises Gone when it does not answer in time."""
        port = free_port()
        process = await Process.launch(python, command.router(port, free_port()), env, log)
        router = cls(Client(f"http://127.0.0.1:{port}", connections), process)
        try:
            async with asyncio.timeout(limit_s):
                while not await router._answers():
                    if why := process.ended():
                        raise Gone(f"router: {why}")
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            await process.kill()
            raise Gone(f"router: no answer within {limit_s:g} s: {process.tail()}") from None
        except BaseException:
            await process.kill()
            raise
        return router

    async def watch(self) -> None:
        """Raises Gone when the router ends; without it the service is of no use."""
        while not (why := self.process.ended()):
            await asyncio.sleep(LOOK_S * 5)
        raise Gone(f"router: {why}")

    async def close(self) -> None:
        """End it."""
        await self.process.kill()
        await self.line.client.close()

    async def add(self, url: str) -> None:
        """Back when requests may reach the server. Raises Gone, Refused or TimeoutError."""
        await self.line.client.post("/workers", {"url": url}, ASK_S)
        async with asyncio.timeout(SETTLE_S):
            while not any(one["url"] == url and one.get("is_healthy", True) for one in await self.workers()):
                await asyncio.sleep(LOOK_S)

    async def remove(self, url: str) -> None:
        """Back when no new request reaches the server. Raises Gone, Refused or TimeoutError."""
        async with asyncio.timeout(SETTLE_S):
            while named := [one["id"] for one in await self.workers() if one["url"] == url]:
                for worker in named:
                    with contextlib.suppress(Refused):  # it is being removed already
                        await self.line.client.delete(f"/workers/{worker}", ASK_S)
                await asyncio.sleep(LOOK_S)

    async def workers(self) -> list[dict[str, Any]]:
        """What the router knows. Raises Gone or Refused."""
        found: list[dict[str, Any]] = (await self.line.client.get("/workers", ASK_S))["workers"]
        return found

    async def _answers(self) -> bool:
        try:
            return await self.line.client.status("/liveness", ASK_S) == 200
        except Gone:
            return False
