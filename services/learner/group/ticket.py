"""The ticket by which other hosts join a learner's group: an address and a key, in a file for its owner's eyes alone.

It outlives the learner's process, so that the next one is found at the same place; what makes groups different from one
another is not in it. Needs no torch.
"""

import json
import os
import re
import socket
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from midflight.kernel.mistake import UserMistake
from midflight.kernel.ports import free_port
from midflight.kernel.rundir import atomic_write
from midflight.messages.sockets import is_key, new_key

ELSEWHERE = ("192.0.2.1", 9)
"""An address of nobody: connecting a datagram socket to it sends nothing, and tells which of ours leads outside."""


ADDRESS = re.compile(r"[A-Za-z0-9._-]{1,253}:([0-9]{1,5})")


class NoTicket(UserMistake):
    """What stands in the file is none."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """address: host:port of the learner."""

    address: str
    key: str

    @property
    def url(self) -> str:
        """As ZeroMQ wants it. Raises UserMistake for a host that is not known."""
        host, _, port = self.address.rpartition(":")
        try:
            return f"tcp://{socket.gethostbyname(host)}:{port}"
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserMistake(f"{self.address}: {why}: no such host is known here") from error

    @property
    def is_sound(self) -> bool:
        """Whether there can be such an address, and such a key."""
        found = ADDRESS.fullmatch(self.address)
        return found is not None and 0 < int(found[1]) < 1 << 16 and is_key(self.key)

    @classmethod
    def read(cls, path: Path) -> "Ticket":
        """Raises UserMistake for a file that is none, or that others may read."""
        try:
            mode = path.stat().st_mode
            data = json.loads(path.read_text())
            ticket = cls(str(data["address"]), str(data["key"]))
        except FileNotFoundError:
            raise UserMistake(
                f"{path}: no such ticket; the run on the first host writes it, as RUN/NAME.ticket"
            ) from None
        except OSError as error:
            raise UserMistake(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise NoTicket(f"{path}: not a ticket to a learner's group; copy RUN/NAME.ticket anew") from error
        if stat.S_IMODE(mode) & 0o077:
            raise UserMistake(f"{path}: others may read it, and it is the key to the group: chmod 600 it")
        if not ticket.is_sound:
            raise NoTicket(f"{path}: not a ticket to a learner's group; copy RUN/NAME.ticket anew")
        return ticket

    def write(self, path: Path) -> None:
        """For its owner alone. Raises UserMistake where it cannot be written."""
        try:
            atomic_write(path, json.dumps(asdict(self), indent=1).encode() + b"\n")
        except OSError as error:
            raise UserMistake(
                f"{path}: cannot be written: {error.strerror}; set `ticket` to a file in a folder that can"
            ) from error

    @classmethod
    def kept(cls, path: Path, meet: str | None) -> "Ticket":
        """That of `path`, made if there is none yet; at `meet` (host or host:port) if that is given.

        Raises UserMistake for a file that is no ticket, and where none can be written.
        """
        try:
            known = cls.read(path) if os.path.exists(path) else None
        except NoTicket as error:
            raise UserMistake(
                f"{path}: not a ticket to a learner's group; remove it: a new one is made, and other hosts need a "
                "new copy"
            ) from error
        host, port = _parted(meet) if meet else ("", 0)
        if known:
            before, old_port = _parted(known.address)
            ticket = cls(f"{host or before}:{port or old_port}", known.key)
        else:
            ticket = cls(f"{host or own_address()}:{port or free_port()}", new_key())
        if not ticket.is_sound:
            raise UserMistake(f"no other host can reach {ticket.address}: set `meet` to host or host:port of this host")
        if ticket != known:
            ticket.write(path)
        return ticket


def own_address() -> str:
    """The address at which other hosts are likely to reach this one."""
    try:
        found = socket.gethostbyname(socket.gethostname())
    except OSError:
        found = "127.0.0.1"
    if not found.startswith("127."):
        return found
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(ELSEWHERE)
        except OSError:
            return found
        name: str = probe.getsockname()[0]
        return name


def interface_of(address: str) -> str:
    """Name of the network interface that leads to `address`, which gloo and NCCL are to use; empty when unknown."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, ELSEWHERE[1]))
        except OSError:
            return ""
        own = probe.getsockname()[0]
    return next((name for name, found in _interfaces() if found == own), "")


def _interfaces() -> list[tuple[str, str]]:
    found = psutil.net_if_addrs()
    return [(name, one.address) for name, every in found.items() for one in every if one.family == socket.AF_INET]


def _parted(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return (host, int(port)) if host else (port, 0)


def network(address: str) -> dict[str, str]:
    """The interface that gloo and NCCL are to use to reach `address`, unless the environment names one already."""
    name = interface_of(address)
    return {key: name for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name and key not in os.environ}
