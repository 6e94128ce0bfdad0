"""The kernel's end of RUN_DIR/warden.sock; the packets are described in `warden.py`.

Requests return a number at once and never block; the answers, with that number, and the reports nobody asked for come
out of `receive` in order. After a connect the kernel calls `list_children`, which tells what happened while
there was no kernel, and then pings more often than the warden's watchdog.
"""

import itertools
import json
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .warden_socket import MAX_PACKET_BYTES, SOCKET_NAME, address

MAX_WAITING = 1024


class WardenLost(ConnectionError):
    """The link is closed: the warden is gone, refused this process, or was not read from for too long."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """Answer to `spawn`: the process runs, whether started by this request or by an earlier one."""

    id: int
    name: str
    generation: int
    pid: int


@dataclass(frozen=True, slots=True)
class Done:
    """Answer to `kill` (the signal is sent, the exit follows) and `stop`."""

    id: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Answer to any request that was not carried out; `why` is for people."""

    id: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Exit:
    """A child ended: `code` or `signal` is None; `oom` guesses that the system killed it for want of memory.

    `out` is the end of its output. It may come twice, live and in a listing; (name, generation) is its key.
    """

    serial: int
    name: str
    generation: int
    pid: int
    code: int | None
    signal: int | None
    oom: bool
    out: str


@dataclass(frozen=True, slots=True)
class Running:
    """A living child; `started` in clock ticks since boot, see process.py."""

    name: str
    generation: int
    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Answer to `list_children`: who lives, oldest first, and the exits no ping has acknowledged yet."""

    id: int
    children: tuple[Running, ...]
    exits: tuple[Exit, ...]


@dataclass(frozen=True, slots=True)
class Stopping:
    """The run ends: services get SIGTERM now and SIGKILL in grace_s seconds; every spawn is refused."""

    grace_s: float


Event = Spawned | Done | Refused | Exit | Listing | Stopping


class WardenLink:
    """One connection to the warden of a run directory; for a poll loop, readable when `receive` has something."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._socket: socket.socket | None = None
        self._ids = itertools.count(1)
        self._waiting: deque[bytes] = deque()
        self._seen = 0

    def connect(self, deadline: float) -> None:
        """Connect by the monotonic time `deadline`. Raises WardenLost; the warden listens before a kernel starts."""
        self.close()
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.settimeout(max(deadline - time.monotonic(), 0.001))
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_PACKET_BYTES)
        try:
            directory = os.open(self._run_dir, os.O_PATH | os.O_DIRECTORY)
            try:
                link.connect(address(directory))
            finally:
                os.close(directory)
        except OSError as error:
            link.close()
            raise WardenLost(f"no warden answers at {self._run_dir / SOCKET_NAME}: {error}") from error
        link.setblocking(False)
        self._socket = link

    def fileno(self) -> int:
        """Descriptor for a poll loop. Raises WardenLost if not connected."""
        return self._connected().fileno()

    def close(self) -> None:
        """Close the connection; unsent requests are forgotten."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._waiting.clear()

    def spawn(
        self,
        name: str,
        generation: int,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        memory_bytes: int | None = None,
        nofile: int | None = None,
        beside: bool = False,
    ) -> int:
        """Start a service, once per (name, generation); -> Spawned or Refused. `beside`: another generation may live.

        env is added to the warden's. The limits, if not None, are set by the child's `bootstrap_from_environment`.
        """
        request = {"name": name, "generation": generation, "argv": list(argv), "env": dict(env or {})}
        return self._request("spawn", request | {"memory_bytes": memory_bytes, "nofile": nofile, "beside": beside})

    def kill(self, name: str, generation: int, signum: int = signal.SIGTERM) -> int:
        """Signal a living service, with SIGKILL its whole group; -> Done or Refused, and Exit when it ends."""
        return self._request("kill", {"name": name, "generation": generation, "signal": int(signum)})

    def list_children(self) -> int:
        """Ask who lives; -> Listing."""
        return self._request("list", {})

    def ping(self) -> None:
        """Prove that the caller's loop turns, and acknowledge every exit `receive` has returned; not answered."""
        self._request("ping", {"seen": self._seen})

    def stop(self, grace_s: float, code: int = 0) -> int:
        """End the run with this exit code; -> Done, Stopping, then SIGTERM for the caller too."""
        return self._request("stop", {"grace_s": grace_s, "code": code})

    def receive(self) -> list[Event]:
        """All that has arrived, without waiting. Raises WardenLost once the link is closed and all is returned."""
        link, events = self._connected(), list[Event]()
        self._flush()
        while True:
            try:
                packet = link.recv(MAX_PACKET_BYTES)
            except BlockingIOError:
                return events
            except OSError:
                packet = b""
            if not packet:
                if events:
                    return events
                path = self._run_dir / SOCKET_NAME
                raise WardenLost(f"the warden closed {path}: it has ended, or this is not its kernel")
            event = _event(json.loads(packet))
            exits = event.exits if isinstance(event, Listing) else (event,) if isinstance(event, Exit) else ()
            self._seen = max([self._seen, *(ended.serial for ended in exits)])
            events.append(event)

    def _request(self, op: str, fields: Mapping[str, object]) -> int:
        self._connected()
        number = next(self._ids)
        packet = json.dumps({"op": op, "id": number, **fields}).encode()
        if len(packet) > MAX_PACKET_BYTES // 4:
            raise ValueError(f"{op}: a request of {len(packet)} bytes is too large; pass a file name instead")
        self._waiting.append(packet)
        self._flush()
        return number

    def _flush(self) -> None:
        """Send what waits. A warden that does not read is most likely stopped for a while, so requests are kept."""
        link = self._connected()
        try:
            while self._waiting:
                link.send(self._waiting[0])
                self._waiting.popleft()
        except BlockingIOError:
            if len(self._waiting) > MAX_WAITING:
                raise WardenLost(f"the warden has not read {MAX_WAITING} requests; is it stopped?") from None
        except OSError:
            self._waiting.clear()  # `receive` reports it, after the last packets

    def _connected(self) -> socket.socket:
        if self._socket is None:
            raise WardenLost("not connected to a warden: call connect first")
        return self._socket


def _event(packet: dict[str, Any]) -> Event:
    fields = {key: value for key, value in packet.items() if key != "op"}
    match packet["op"]:
        case "spawned":
            return Spawned(**fields)
        case "exit":
            return Exit(**fields)
        case "refused":
            return Refused(**fields)
        case "done":
            return Done(**fields)
        case "stopping":
            return Stopping(**fields)
        case "listing":
            children = tuple(Running(**child) for child in fields["children"])
            exits = tuple(Exit(**{k: v for k, v in ended.items() if k != "op"}) for ended in fields["exits"])
            return Listing(fields["id"], children, exits)
        case other:
            raise WardenLost(f"the warden sent {other!r}: it is of another version; end the run and start it again")
