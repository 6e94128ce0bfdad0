"""HTTP to one SGLang server, or to a router: JSON in, JSON out, and one exception for each kind of failure."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from .reply import BadReply

CONNECT_S = 5.0
FAILURES = (httpx.HTTPError, httpx.InvalidURL, UnicodeError)
"""The others are of addresses, and none of the first."""
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
        """The JSON under `path`. Raises Gone or Refused."""
        return await self._ask("GET", path, None, timeout_s)

    async def post(self, path: str, body: Mapping[str, Any], timeout_s: float) -> Any:
        """What the server answers. Raises Gone, or Refused, also where the answer says success: false."""
        answer = await self._ask("POST", path, body, timeout_s)
        if isinstance(answer, Mapping) and answer.get("success") is False:
            raise Refused(f"{self.url}{path}: {str(answer.get('message'))[:500]}")
        return answer

    async def delete(self, path: str, timeout_s: float) -> Any:
        """Remove what lies under `path`. Raises Gone or Refused."""
        return await self._ask("DELETE", path, None, timeout_s)

    async def status(self, path: str, timeout_s: float) -> int:
        """The status code alone. Raises Gone."""
        try:
            return (await self._http.get(path, timeout=httpx.Timeout(timeout_s, connect=CONNECT_S))).status_code
        except FAILURES as error:
            raise self._gone(path, error) from error

    async def weight_version(self, timeout_s: float) -> str:
        """Which weights the server says it has; answers while it is paused too. Raises Gone, Refused or BadReply."""
        info = await self.get("/model_info", timeout_s)
        try:
            return str(info["weight_version"])
        except (KeyError, TypeError) as error:
            raise BadReply(f"{self.url}/model_info: no weight_version: {str(info)[:300]}") from error

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> Any:
        try:
            reply = await self._http.request(
                method, path, json=body, timeout=httpx.Timeout(timeout_s, connect=CONNECT_S)
            )
        except FAILURES as error:
            raise self._gone(path, error) from error
        if reply.is_redirect:
            where = reply.headers["location"]
            raise Refused(f"{self.url}{path}: {reply.status_code}, look at {where[:300]}", reply.status_code)
        if not reply.is_success:
            raise Refused(f"{self.url}{path}: {reply.status_code} {reply.text[:500]}", reply.status_code)
        try:
            return reply.json() if reply.content else None
        except (ValueError, RecursionError):
            return reply.text

    def _gone(self, path: str, error: Exception) -> Gone:
        kind = Garbled if isinstance(error, httpx.RemoteProtocolError | httpx.DecodingError) else Gone
        return kind(f"{self.url}{path}: {type(error).__name__} {error}")
