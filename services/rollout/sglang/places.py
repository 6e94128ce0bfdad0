"""Where a server may live: a slot of ours, in which one is launched again and again, or a URL."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from midflight.kernel.mistake import UserMistake
from midflight.kernel.ports import free_port

from . import command
from .client import Client
from .config import SglangConfig
from .life import Life
from .process import Process
from .router import Router


@dataclass(frozen=True, slots=True)
class Site:
    """What launched processes have in common: interpreter, device, model, and where their output goes."""

    python: str
    device: str
    model: command.Model
    logs: Path
    name: str

    def log(self, what: str) -> Path:
        """The file of one process's output."""
        return self.logs / f"{self.name}.{what}.log"

    def environment(self, tp_size: int) -> dict[str, str]:
        """Of a launched process."""
        return command.environment(self.device, tp_size, os.environ)


class Launched:
    """A slot for a process of ours: one that is discarded is followed by another."""

    ours = True

    def __init__(self, index: int, config: SglangConfig, site: Site) -> None:
        self.name = f"server {index}"
        self._index, self._config, self._site = index, config, site

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Life]:
        """Launch a server. Raises OSError."""
        config, site, port = self._config, self._site, free_port()
        argv = command.server(config, site.model, site.device, port, self._index)
        log = site.log(f"server-{self._index}")
        process = await Process.launch(site.python, argv, site.environment(config.tp_size), log)
        async with Client(f"http://127.0.0.1:{port}", config.slots + 8) as client:
            life = Life(client, config, process)
            try:
                yield life
            finally:
                await life.close()


class Remote:
    """A server at a URL: one that cannot be trusted is out for good."""

    ours = False

    def __init__(self, url: str, config: SglangConfig) -> None:
        self.name = url
        self._config = config
        self._key = _key(config.api_key_env) if config.api_key_env else None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Life]:
        """Reach the server."""
        async with Client(self.name, self._config.slots + 8, self._key) as client:
            life = Life(client, self._config, None)
            try:
                yield life
            finally:
                await life.close()


def _key(variable: str) -> str:
    """The key. Raises UserMistake, which does not tell it."""
    key = os.environ.get(variable, "")
    if not key or not key.isascii() or not key.isprintable():
        what = "is not set" if not key else "holds more than printable ASCII, so it is no key"
        raise UserMistake(f"sglang: api_key_env: the environment variable {variable} {what}")
    return key


def look(config: SglangConfig) -> None:
    """Before anything is loaded: is all there that the places of this rollout need? Raises UserMistake."""
    if config.api_key_env:
        _key(config.api_key_env)
    if config.router or not config.urls:
        command.interpreter(config)


Place = Launched | Remote
MakeRouter = Callable[[], Awaitable[Router]]


def make_places(
    config: SglangConfig, model: command.Model, logs: Path, name: str
) -> tuple[list[Place], MakeRouter | None]:
    """Where the servers of a rollout live, and how to make its router if it has one.

    Raises UserMistake when something is to be launched and there is no environment for it, or a key is not there.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    launches = config.router or not config.urls
    site = Site(command.interpreter(config) if launches else "", device, model, logs, name)
    own: list[Place] = [Launched(index, config, site) for index in range(config.servers)]
    theirs: list[Place] = [Remote(url.rstrip("/"), config) for url in config.urls]

    async def router() -> Router:
        """Launch one, without servers yet."""
        return await Router.launch(
            site.python, site.environment(1), site.log("router"), config.slots + 8, config.start_timeout_s
        )

    return theirs or own, router if config.router else None
