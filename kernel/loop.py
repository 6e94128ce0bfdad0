"""The real loop: sockets, watched descriptors and signals around one node, in one thread."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from types import FrameType

import zmq

from midflight.messages.sockets import Endpoint, Role

from .node import Node

DRAIN = 128


class Loop:
    """Owns the sockets of one process and drives its node. It is the node's `Bus`."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._endpoints: dict[str, Endpoint] = {}
        self._watches: dict[int, Callable[[], None]] = {}
        self._poller = zmq.Poller()
        self._signals: list[int] = []
        self._held: list[tuple[str, list[bytes], str]] | None = None

    def add(self, port: str, role: Role, url: str, identity: str = "") -> None:
        """Bind or connect one port."""
        endpoint = Endpoint(self._context, role, url, identity)
        self._endpoints[port] = endpoint
        self._poller.register(endpoint.socket, zmq.POLLIN)

    def _watch(self, wanted: Mapping[int, Callable[[], None]]) -> None:
        """Poll exactly the node's descriptors."""
        for gone in self._watches.keys() - wanted.keys():
            self._poller.unregister(gone)
        for new in wanted.keys() - self._watches.keys():
            self._poller.register(new, zmq.POLLIN)
        self._watches = dict(wanted)

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def send(self, port: str, frames: list[bytes], to: str = "") -> bool:
        """See `Bus.send`."""
        if self._held is None:
            return self._endpoints[port].send(frames, to)
        self._held.append((port, frames, to))
        return True

    def _deliver(self, port: str, endpoint: Endpoint, node: Node) -> None:
        """Hand over what waits at a socket, and send only then what that gave rise to.

        libzmq's thread, woken for every answer on its own, costs a fifth of a busy kernel's time.
        """
        held = self._held = []
        for incoming in endpoint.drain(DRAIN):
            node.deliver(port, incoming)
        self._held = None
        for answer in held:
            self.send(*answer)

    def run(self, node: Node, on_signal: Mapping[int, Callable[[], None]]) -> int:
        """Drive the node until it leaves; -> its exit code."""
        wakeup, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in on_signal:
            signal.signal(number, self._note_signal)
        self._poller.register(wakeup, zmq.POLLIN)
        by_socket = {endpoint.socket: (port, endpoint) for port, endpoint in self._endpoints.items()}
        while node.exit_code is None:
            wait = node.turn(self.now())
            if node.exit_code is not None:
                break
            self._watch(node.watches())
            for source, _ in self._poller.poll(max(0, int(wait * 1000 + 0.999))):
                if source == wakeup:
                    os.read(wakeup, 512)
                elif source in by_socket:
                    port, endpoint = by_socket[source]
                    self._deliver(port, endpoint, node)
                elif source in self._watches:
                    self._watches[source]()
            while self._signals:
                on_signal[self._signals.pop(0)]()
        signal.set_wakeup_fd(-1)
        return node.exit_code

    def flush(self, seconds: float) -> None:
        """Close every socket, giving queued messages up to `seconds` to leave."""
        for endpoint in self._endpoints.values():
            endpoint.socket.close(linger=int(seconds * 1000))
        self._context.term()

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
