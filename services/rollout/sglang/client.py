"""HTTP to one SGLang server, or to a router: JSON in, JSON out, and one exception for each kind of failure.

A reply is read no further than it can be long, and no longer than it may take: what answers is not trusted.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from .reply import BadReply

CONNECT_S = 5.0
FAILURES = (httpx.HTTPError, httpx.InvalidURL, UnicodeError)
"""The others are of addresses, and none of the first."""
REPLY_BYTES = 1 << 20
"""Longest reply, but for its tokens."""
TOKEN_BYTES = 1 << 10
"""Most that a reply may hold of one token: its id, log-prob, weight version, and text."""
KEEP_S = 2.0
"""An idle connection is not used again after this. Servers close theirs after 5 s, unless told otherwise, and a request
that meets that end is answered by nothing, as if the server had died."""


class Gone(ConnectionError):
    """No answer: the server is dead, hangs, or closed the connection."""


class Garbled(Gone):
    """What came is not HTTP, or broke off."""


class Refused(RuntimeError):
    """The server answered, and not with success; `status` is HTTP's."""

    def __init__(self, text: str, status: int = 200) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Reply:
    """What was read of one."""

    status: int
    where: str
    """`location` of a redirection."""
    content: bytes

    def text(self) -> str:
        """The beginning of it, for people."""
        return self.content[:500].decode(errors="replace")


class Client:
    """Requests to `url`; `connections` at a time. Enter it, so that it is closed."""

    def __init__(self, url: str, connections: int, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        limits = httpx.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEP_S
        )
        self._http = httpx.AsyncClient(
            base_url=self.url,
            limits=limits,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            trust_env=False,  # a proxy of the environment has no business between us and our servers
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop all connections."""
        await self._http.aclose()

    async def get(self, path: str, timeout_s: float) -> Any:
        """The JSON under `path`. Raises Gone, Refused or BadReply."""
        return await self._ask("GET", path, None, timeout_s)

    async def post(self, path: str, body: Mapping[str, Any], timeout_s: float, tokens: int = 0) -> Any:
        """What the server answers, of `tokens` tokens at most. Raises Gone, BadReply, or Refused, also where the answer
        says success: false.
        """
        answer = await self._ask("POST", path, body, timeout_s, tokens)
        if isinstance(answer, Mapping) and answer.get("success") is False:
            raise Refused(f"{self.url}{path}: {str(answer.get('message'))[:500]}")
        return answer

    async def delete(self, path: str, timeout_s: float) -> Any:
        """Remove what lies under `path`. Raises Gone, Refused or BadReply."""
        return await self._ask("DELETE", path, None, timeout_s)

    async def status(self, path: str, timeout_s: float) -> int:
        """The status code alone. Raises Gone."""
        try:
            async with asyncio.timeout(timeout_s), self._http.stream("GET", path, timeout=_limits(timeout_s)) as reply:
                return reply.status_code
        except (*FAILURES, TimeoutError) as error:
            raise self._gone(path, error) from error

    async def weight_version(self, timeout_s: float) -> str:
        """Which weights the server says it has; answers while it is paused too. Raises Gone, Refused or BadReply."""
        info = await self.get("/model_info", timeout_s)
        try:
            return str(info["weight_version"])
        except (KeyError, TypeError) as error:
            raise BadReply(f"{self.url}/model_info: no weight_version: {str(info)[:300]}") from error

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float, tokens: int = 0
    ) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self._read(method, path, body, timeout_s, REPLY_BYTES + TOKEN_BYTES * tokens)
        except (*FAILURES, TimeoutError) as error:
            raise self._gone(path, error) from error
        if reply.where:
            raise Refused(f"{self.url}{path}: {reply.status}, look at {reply.where[:300]}", reply.status)
        if not 200 <= reply.status < 300:
            raise Refused(f"{self.url}{path}: {reply.status} {reply.text()}", reply.status)
        try:
            return json.loads(reply.content) if reply.content else None
        except (ValueError, RecursionError):
            return reply.text()

    async def _read(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float, most: int
    ) -> _Reply:
        """At most so many bytes. Raises BadReply, and what httpx does."""
        content = bytearray()
        async with self._http.stream(method, path, json=body, timeout=_limits(timeout_s)) as reply:
            where = reply.headers["location"] if reply.has_redirect_location else ""
            async for chunk in reply.aiter_bytes():
                content += chunk
                if len(content) > most:
                    raise BadReply(f"{self.url}{path}: a reply of more than {most} bytes")
        return _Reply(reply.status_code, where, bytes(content))

    def _gone(self, path: str, error: Exception) -> Gone:
        if isinstance(error, TimeoutError):
            return Gone(f"{self.url}{path}: no whole answer in time")
        kind = Garbled if isinstance(error, httpx.RemoteProtocolError | httpx.DecodingError) else Gone
        return kind(f"{self.url}{path}: {type(error).__name__} {error}")


def _limits(timeout_s: float) -> httpx.Timeout:
    """Of each part of a request."""
    return httpx.Timeout(timeout_s, connect=CONNECT_S)
