"""Rank 0's side of the other hosts: a thread that hears them, gives them their places, and knows who is lost.

It has a socket of its own and answers also while training is in a step: what a host is told, and how soon it is missed,
does not depend on how long steps take.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import zmq

from midflight import __version__
from midflight.kernel.mistake import UserMistake
from midflight.kernel.ports import free_port
from midflight.messages.group import GroupHost, GroupPlace
from midflight.messages.sockets import Endpoint
from midflight.messages.wire import Received, Sealer, WireError, decode, dump

from .roll import Roll
from .ticket import Ticket

TURN_S = 0.2
GOODBYE_S = 2.0


@dataclass(frozen=True, slots=True)
class Ground:
    """What every place has in common: run, directory, service, and what ranks read of the directory."""

    run_id: str
    run_dir: str
    service: str
    files: dict[str, str]


class Meeting:
    """handle: readable when a host or a rank on one is lost.

    Raises UserMistake when the ticket's address cannot be listened at.
    """

    def __init__(self, ticket: Ticket, ground: Ground, world: int, here: int, share: int, by_torchrun: bool) -> None:
        generation = secrets.token_hex(8)
        self.roll = Roll(generation, world, here, share, __version__, version("torch"), by_torchrun)
        self.handle = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.address = ticket.url.removeprefix("tcp://").rpartition(":")[0]
        self.port = free_port()
        """Of this group's store."""
        self._ground, self._ending = ground, ""
        self._lock, self._changed = threading.Lock(), threading.Event()
        self._sealer = Sealer(f"{ground.service}#{os.getpid()}")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._endpoint = Endpoint(self._context, "router", ticket.url, key=ticket.key)
        except zmq.ZMQError as error:
            raise UserMistake(
                f"the other hosts are to find the learner at {ticket.address}, but it cannot listen there: "
                f"{error.strerror}; set `meet` to an address of this host and a free port"
            ) from error
        self._thread = threading.Thread(target=self._run, name="meeting", daemon=True)
        self._thread.start()

    @property
    def generation(self) -> str:
        """Of the group; no other has the same."""
        return self.roll.generation

    def gather(self, within_s: float, turn: Callable[[str], None]) -> None:
        """Wait until enough have come, telling `turn` now and then what is lacking. Raises UserMistake."""
        until = time.monotonic() + within_s
        while True:
            self._changed.wait(TURN_S)
            self._changed.clear()
            with self._lock:
                whole, lacking, guests = self.roll.whole, self.roll.lacking, list(self.roll.guests.values())
            if whole:
                return
            there = ", ".join(sorted({guest.said.host for guest in guests if guest.count})) or "nobody"
            if time.monotonic() > until:
                raise UserMistake(
                    f"{lacking} of the group's {self.roll.world} ranks have not come from other hosts in "
                    f"{within_s:g} s (there: {there}): run `midflight join` there with this run's ticket, "
                    "or set `ranks` and `hosts` to what there is"
                )
            turn(f"{lacking} of {self.roll.world} ranks from other hosts (there: {there})")

    def ends(self) -> dict[int, str]:
        """What became of hosts and of ranks on them, by rank; empty while all are there."""
        with self._lock:
            return self.roll.ends()

    def living(self) -> dict[int, str]:
        """Ranks elsewhere of which no end is known, and their hosts."""
        with self._lock:
            return self.roll.living()

    def close(self, over: bool) -> None:
        """Tell all that the learner leaves, or that nothing is left to train."""
        self._ending = "over" if over else "left"
        self._thread.join(GOODBYE_S)

    def _run(self) -> None:
        told: set[str] = set()
        while True:
            self._endpoint.socket.poll(int(1000 * TURN_S))
            for incoming in self._endpoint.drain():
                try:
                    received = decode(incoming.frames)
                except WireError:
                    continue  # it has the key, so it is another version's; silence is its answer
                if isinstance(received.message, GroupHost) and self._answer(
                    incoming.sender, received, received.message
                ):
                    told.add(incoming.sender)
            with self._lock:
                self.roll.tick(time.monotonic())
                if self.roll.ends():
                    os.eventfd_write(self.handle, 1)
                if self._ending and told >= self.roll.guests.keys():
                    break
        self._endpoint.socket.close(linger=1000)
        self._context.term()

    def _answer(self, name: str, received: Received, said: GroupHost) -> bool:
        """-> Whether it was told that the learner ends."""
        with self._lock:
            refused = self.roll.hear(name, said, time.monotonic())
            place = self._place(name, said, refused)
        self._changed.set()
        _, frames = self._sealer.seal(place.KIND, dump(place), correlation=received.envelope.id)
        self._endpoint.send(frames, name)
        return place.over or place.left

    def _place(self, name: str, said: GroupHost, refused: str) -> GroupPlace:
        roll, ground = self.roll, self._ground
        bare = GroupPlace(run_id=ground.run_id, run_dir=ground.run_dir, service=ground.service)
        guest = roll.guests.get(name)
        if refused:
            return bare.model_copy(update={"said": refused, "refused": True})
        if self._ending:
            return bare.model_copy(update={self._ending: True})
        if guest is None or not roll.whole:
            return bare.model_copy(update={"said": f"{roll.lacking} of {roll.world} ranks are still to come"})
        if guest.first is None:
            return bare.model_copy(update={"said": f"the group of {roll.world} ranks is whole; a spare for the next"})
        seat = {"generation": roll.generation, "first": guest.first, "count": guest.count, "world": roll.world}
        where = {"address": self.address, "port": self.port}
        files = {} if said.generation == roll.generation else ground.files
        return bare.model_copy(update={**seat, **where, "files": files})
