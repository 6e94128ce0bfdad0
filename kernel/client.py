"""A person's or program's side of a run: connect, ask, wait for the answer. Used by every command line verb."""

import json
import os
import random
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq

from midflight.messages.base import Message
from midflight.messages.sockets import Endpoint, Role
from midflight.messages.wire import Received, Sealer, WireError, decode, dump, is_reject


class Unreachable(ConnectionError):
    """The run does not answer: it is over, restarting, or speaks another protocol."""


class Client:
    """One client of one run; not shared between threads."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        try:
            self.run: dict[str, Any] = json.loads((run_dir / "run.json").read_text())
        except (OSError, ValueError):
            raise Unreachable(f"{run_dir}: no live run here; `midflight up --resume` would start it again") from None
        self.identity = f"cli-{os.getpid()}#{random.getrandbits(30)}"
        self._sealer = Sealer(self.identity)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._ports: dict[str, Endpoint] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def port(self, name: str, role: Role = "dealer") -> Endpoint:
        """The endpoint of a port, connected on first use."""
        if name not in self._ports:
            self._ports[name] = Endpoint(self._context, role, self.run["endpoints"][name], self.identity)
        return self._ports[name]

    def ask(self, port: str, message: Message, timeout_s: float = 3.0) -> Received:
        """Send a request and wait for its own answer; late answers to older questions are dropped.

        Raises:
            Unreachable: no answer within the timeout, or the other side speaks another protocol.
        """
        endpoint = self.port(port)
        ident, frames = self._sealer.seal(message.KIND, dump(message))
        endpoint.send(frames)
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if not endpoint.socket.poll(int(left * 1000) + 1):
                continue
            for incoming in endpoint.drain():
                if is_reject(incoming.frames):
                    raise Unreachable(f"{self.run_dir}: the run speaks another protocol than this midflight")
                try:
                    received = decode(incoming.frames)
                except WireError:
                    continue
                if received.envelope.c == ident:
                    return received
        raise Unreachable(f"{self.run_dir}: no answer to {message.KIND} within {timeout_s:g} s")

    def close(self) -> None:
        """Close the sockets."""
        for endpoint in self._ports.values():
            endpoint.socket.close(linger=200)
        self._context.term()
