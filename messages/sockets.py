"""The one place where sockets are made. Each option is there for a loss that was measured.

A ROUTER that meets an unknown or full peer says so (MANDATORY) instead of dropping; a reconnecting identity takes over
from its dead self (HANDOVER); nothing lingers at exit; every queue and message has a bound. A message is read frame by
frame, because neither HWM nor MAXMSGSIZE bounds the number of frames of one message. Reading goes through zmq.Poller,
which asks the socket rather than its edge-triggered descriptor, so no wake-up is lost after a send.
"""

import contextlib
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

import zmq

from .wire import MAX_BUFFER, MAX_FRAMES

HWM: Final = 1000
"""Messages a socket may hold for one peer in each direction."""
KEY_CHARS: Final = 40
_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
"""Plain ints: pyzmq's flags are enums, on which send_multipart and rcvmore spend more than libzmq on a message."""
Role = Literal["router", "dealer", "xpub", "sub"]
_TYPES: Final = {"router": zmq.ROUTER, "dealer": zmq.DEALER, "xpub": zmq.XPUB, "sub": zmq.SUB}


class Incoming(NamedTuple):
    """Raw frames of one message, with what the socket knows of the peer."""

    sender: str
    """ROUTER: the peer's identity; otherwise empty."""
    frames: list[bytes]
    link: zmq.Frame | int | None = None
    """What tells the peer's process: the first frame of an ipc link, or the process id itself."""

    @property
    def pid(self) -> int | None:
        """Process id of the peer by SO_PEERCRED; looked up when asked, which only a hello does."""
        return _peer_pid(self.link) if isinstance(self.link, zmq.Frame) else self.link


class Endpoint:
    """A socket with bounds. `router` and `xpub` bind, `dealer` and `sub` connect.

    key: a CURVE secret key that both sides have. It encrypts, and is the admission: nobody else knows its public half,
    without which a handshake fails.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], role: Role, url: str, identity: str = "", key: str = ""
    ) -> None:
        self.role, self.url = role, url
        self.socket = context.socket(_TYPES[role])
        sock = self.socket
        self._send = super(zmq.Socket, sock).send
        """Past pyzmq's convenience for draft sockets, which doubles what a frame costs."""
        sock.linger = 0
        sock.set_hwm(HWM)
        sock.maxmsgsize = MAX_BUFFER
        sock.handshake_ivl = 3000
        sock.reconnect_ivl, sock.reconnect_ivl_max = 20, 1000
        if role == "router":
            sock.router_mandatory = 1
            sock.router_handover = 1
        if role == "sub":
            sock.setsockopt(zmq.SUBSCRIBE, b"")
        if identity:
            sock.identity = identity.encode()
        if key:
            _guard(sock, key, role in ("router", "xpub"))
        if role in ("router", "xpub"):
            sock.bind(url)
        else:
            sock.connect(url)

    def send(self, frames: list[bytes], to: str = "") -> bool:
        """Queue a message. False when the peer is unknown or its queue is full: nothing was sent."""
        *rest, last = [to.encode(), *frames] if self.role == "router" else frames
        send = self._send
        try:
            for frame in rest:
                send(frame, _MORE)
            send(last, _NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        return True

    def drain(self, limit: int = 128) -> Iterator[Incoming]:
        """Up to `limit` waiting messages; the caller comes back for the rest in its next turn."""
        for _ in range(limit):
            try:
                first = self.socket.recv(_NOBLOCK, copy=False)
            except zmq.Again:
                return
            yield self._read(first)

    def _read(self, first: zmq.Frame) -> Incoming:
        frames, frame = [first.bytes], first
        while frame.more:
            frame = self.socket.recv(_NOBLOCK, copy=False)
            if len(frames) <= MAX_FRAMES + 1:  # one too many is kept, so that decode refuses it by its count
                frames.append(frame.bytes)
        if self.role != "router":
            return Incoming("", frames)
        return Incoming(frames[0].decode("ascii", "replace"), frames[1:], first)

    def close(self) -> None:
        """Close at once; what is queued is dropped, and what mattered is resent by its owner."""
        self.socket.close(linger=0)


def _guard(sock: "zmq.Socket[bytes]", key: str, serves: bool) -> None:
    """CURVE, and signs of life: over a network a peer may go without a word."""
    secret, public = key.encode(), zmq.curve_public(key.encode())
    sock.curve_secretkey, sock.curve_publickey = secret, public
    if serves:
        sock.curve_server = True
    else:
        sock.curve_serverkey = public
    sock.heartbeat_ivl, sock.heartbeat_timeout = 2000, 8000


def new_key() -> str:
    """A key for an `Endpoint`."""
    _, secret = zmq.curve_keypair()
    return secret.decode()


def is_key(text: str) -> bool:
    """Whether an `Endpoint` can use it."""
    try:
        zmq.curve_public(text.encode("ascii"))
    except (ValueError, zmq.ZMQError):
        return False
    return len(text) == KEY_CHARS


def _peer_pid(frame: zmq.Frame) -> int | None:
    with contextlib.suppress(zmq.ZMQError, ValueError, IndexError):
        parts = str(frame.get("Peer-Address")).split(":")  # ipc: "localhost:uid:gid:pid"
        if parts[0] == "localhost":
            return int(parts[3])
    return None
