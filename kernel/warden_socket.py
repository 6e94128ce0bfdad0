"""The warden's end of RUN_DIR/warden.sock: JSON packets from the kernel in, answers and reports out.

AF_UNIX SOCK_SEQPACKET keeps packet borders and tells of the other side's death. Only the process whose pid is
`allowed` (checked by SO_PEERCRED) is let in, and only one connection of it. Standard library only.
"""

import contextlib
import json
import os
import selectors
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

MAX_PACKET_BYTES = 512 * 1024
SOCKET_NAME = "warden.sock"

Message = dict[str, object]
T = TypeVar("T")


class Refusal(ValueError):
    """A request that is not carried out; its text is the answer."""


def address(directory: int) -> str:
    """Socket path through a descriptor of the run directory: AF_UNIX paths end at 108 bytes, directories do not."""
    return f"/proc/self/fd/{directory}/{SOCKET_NAME}"


def field(request: Message, key: str, kind: type[T]) -> T:
    """Value of a request's field. Raises Refusal if it is missing or of another type; a boolean is no integer."""
    value = request.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Refusal(f"{request.get('op')}: {key} must be of type {kind.__name__}")
    return value


class WardenSocket:
    """Serves `operations` (by the request's "op") to the process `allowed`; `log` takes lines for people.

    An operation returns its answer, None for none, or raises Refusal.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        operations: Mapping[str, Callable[[Message], Message | None]],
        log: Callable[[str], None],
    ) -> None:
        self.allowed: int | None = None
        self._selector, self._operations, self._log = selector, operations, log
        self._link: socket.socket | None = None

    def open(self, run_dir: Path, directory: int) -> None:
        """Bind and listen; `directory` is an open descriptor of run_dir. A stale socket is replaced."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        (run_dir / SOCKET_NAME).unlink(missing_ok=True)
        umask = os.umask(0o177)
        self._listener.bind(address(directory))
        os.umask(umask)
        self._listener.listen(8)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def send(self, message: Message) -> None:
        """Send or disconnect: a kernel that reads too slowly connects again, lists, and has lost nothing."""
        if self._link is not None:
            try:
                self._link.send(json.dumps(message, ensure_ascii=False).encode(errors="replace"))
            except OSError as error:
                self._log(f"the kernel is disconnected: {error}")
                self.drop()

    def drain(self) -> None:
        """Carry out what has arrived, at most 256 requests, so that deaths and deadlines get their turn too."""
        for _ in range(256):
            packet = None
            with contextlib.suppress(ConnectionError):
                try:
                    packet = self._link.recv(MAX_PACKET_BYTES) if self._link is not None else None
                except BlockingIOError:
                    return
            if not packet:
                self.drop()
                return
            answer = self._answer(packet)
            if answer is not None:
                self.send(answer)

    def drop(self) -> None:
        """Close the connection, if there is one."""
        if self._link is not None:
            self._selector.unregister(self._link)
            self._link.close()
            self._link = None

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        peer = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        if peer != self.allowed:
            self._log(f"process {peer} is not the kernel: connection refused")
            client.close()
            return
        self.drop()
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_PACKET_BYTES)
        self._selector.register(client, selectors.EVENT_READ, self.drain)
        self._link = client

    def _answer(self, packet: bytes) -> Message | None:
        number: object = None
        try:
            request = json.loads(packet)
            number = request["id"]
            answer = self._operations[request["op"]](request)
        except Refusal as refusal:
            answer = {"op": "refused", "why": str(refusal)}
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            answer = {"op": "refused", "why": f"not a request to the warden: {error!r}"}
        return None if answer is None else answer | {"id": number}
