"""The HTTP client of the SGLang rollout against a server that closes what has been idle."""

import asyncio

import pytest

from midflight.services.rollout.sglang import client, command

SGLANG_CLOSES_S = 5.0
"""uvicorn's default, and SGLang's."""
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request, and close the connection when it is used again."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(ANSWER)
    await reader.read(1)
    writer.transport.abort()


async def ask_twice(pause_s: float) -> None:
    """Two requests with a pause between them. Raises Gone."""
    async with await asyncio.start_server(once, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with client.Client(f"http://127.0.0.1:{port}", 4) as http:
            await http.get("/", 5.0)
            await asyncio.sleep(pause_s)
            await http.get("/", 5.0)


def test_a_connection_that_may_be_closed_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was idle for longer than KEEP_S; a server's own limit is well beyond that."""
    monkeypatch.setattr(client, "KEEP_S", 0.05)
    asyncio.run(ask_twice(0.2))
    monkeypatch.undo()
    assert client.KEEP_S < 0.5 * SGLANG_CLOSES_S
    assert command.KEEP_ALIVE_S > SGLANG_CLOSES_S


def test_the_end_of_a_connection_in_use_is_told_as_gone() -> None:
    """The control: the same server, asked again at once."""
    with pytest.raises(client.Gone):
        asyncio.run(ask_twice(0.0))
