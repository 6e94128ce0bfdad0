"""textual-serve's server, with a guard before every answer that could show or change a run."""

import logging
from typing import Literal

from aiohttp import web
from textual_serve.server import Server

from .web import is_ours


class Guarded(Server):
    """Refuses what does not come from its own page."""

    def initialize_logging(self) -> None:
        """Say what goes wrong, not every request."""
        logging.basicConfig(level="WARNING", format="%(message)s")

    async def handle_index(self, request: web.Request) -> web.StreamResponse:
        """The page."""
        _check(request)
        page: web.StreamResponse = await super().handle_index(request)
        return page

    async def handle_websocket(self, request: web.Request) -> "web.WebSocketResponse[Literal[True]]":
        """The screen and the keys."""
        _check(request)
        return await super().handle_websocket(request)

    async def handle_download(self, request: web.Request) -> web.StreamResponse:
        """What the screens export."""
        _check(request)
        return await super().handle_download(request)


def _check(request: web.Request) -> None:
    if not is_ours(request.headers):
        raise web.HTTPForbidden(text="this address serves this machine's own browser only")
