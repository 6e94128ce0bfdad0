"""Another host's side of a group: `midflight join`, which stays for the whole run and starts ranks as it is told.

    tells    every half second what it offers, what it runs and what has ended, at once when something ends
    obeys    the newest answer: run these ranks of this group, or none; ranks of another group are ended before
    ends     its ranks, when the learner is not heard for `SILENCE_S`; itself, when none comes back within `wait_s`

The run directory is used if it is seen from here (the same path, the same run); otherwise ranks get a folder of their
own, and checkpoints travel (`checkpoints/ferry.py`). Needs no torch, but its ranks do.
"""

import json
import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Final

import zmq

from midflight import __version__
from midflight.kernel.mistake import UserMistake
from midflight.kernel.owner import environment
from midflight.kernel.rundir import RunDir, atomic_write
from midflight.kernel.settings import Settings
from midflight.messages.group import GroupHost, GroupPlace, RankEnd
from midflight.messages.sockets import Endpoint
from midflight.messages.wire import Sealer, WireError, decode, dump

from .launch import Launched, contract
from .roll import SILENCE_S
from .ticket import Ticket, network

BEAT_S: Final = 0.5
LEFT_S: Final = 60.0
"""How long a learner that left in good order may take to come back, before its run counts as over."""
OK, FAILED, INTERRUPTED = 0, 1, 130
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Offer:
    """What this process brings. ranks: 0 is an even share of the group. rank, world, local: torchrun's."""

    ranks: int = 0
    rank: int | None = None
    world: int | None = None
    local: int = 0

    @classmethod
    def here(cls, ranks: int = 0, environ: Mapping[str, str] = os.environ) -> "Offer":
        """By torchrun's environment where it is set: one rank a process."""
        if "RANK" not in environ or "WORLD_SIZE" not in environ:
            return cls(ranks)
        return cls(1, int(environ["RANK"]), int(environ["WORLD_SIZE"]), int(environ.get("LOCAL_RANK", "0")))


def found(path: Path, wait_s: float, say: Say) -> Ticket:
    """The ticket, waited for: the learner may be the last to start. Raises UserMistake."""
    until = time.monotonic() + wait_s
    if not path.exists():
        say(f"waits for the ticket {path}")
    while not path.exists():
        if time.monotonic() > until:
            raise UserMistake(
                f"{path}: no ticket after {wait_s:g} s; the run on the first host writes it, as RUN/NAME.ticket or "
                "where `ticket` says; copy it, or name it where both hosts see it"
            )
        time.sleep(BEAT_S)
    return Ticket.read(path)


class Joiner:
    """One `midflight join`. folder: for its ranks, in place of the run directory."""

    def __init__(self, ticket: Ticket, offer: Offer, folder: Path | None, wait_s: float, say: Say) -> None:
        self._offer, self._given, self._wait_s, self._say = offer, folder, wait_s, say
        self._host = os.uname().nodename
        name = re.sub(r"[^a-z0-9_.-]", "-", self._host.lower()).strip("-.")[:40] or "host"
        identity = f"{name}-{secrets.token_hex(4)}#{os.getpid()}"
        self._sealer = Sealer(identity)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._endpoint = Endpoint(self._context, "dealer", ticket.url, identity, ticket.key)
        self._address = ticket.address
        self._ranks: Launched | None = None
        self._generation = self._said = ""
        self._ended: dict[int, str] = {}
        self._heard = time.monotonic()
        self._met = self._left = False
        self._signal = 0

    def run(self) -> int:
        """Until the run is over, or nothing is heard of it; -> exit code. Raises UserMistake when it is refused."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note_signal)
        self._say(f"joins the learner at {self._address}")
        try:
            return self._loop()
        finally:
            self._end()
            self._endpoint.socket.close(linger=500)
            self._context.term()

    def _loop(self) -> int:
        beat = 0.0
        while True:
            if self._signal:
                self._tell(leaving=f"stopped by {signal.Signals(self._signal).name}")
                return INTERRUPTED
            now = time.monotonic()
            if self._look() or now >= beat:
                self._tell()
                beat = now + BEAT_S
            self._poll(beat - now)
            for incoming in self._endpoint.drain():
                try:
                    message = decode(incoming.frames).message
                except WireError as error:
                    raise UserMistake(f"the learner is of another version of midflight: {error}") from error
                if isinstance(message, GroupPlace) and self._obey(message):
                    return OK
            if (code := self._missing(time.monotonic())) is not None:
                return code

    def _poll(self, seconds: float) -> None:
        """Until a message comes, a rank ends, or it is time."""
        poller = zmq.Poller()
        poller.register(self._endpoint.socket, zmq.POLLIN)
        for rank, handle in (self._ranks.handles if self._ranks else {}).items():
            if rank not in self._ended:
                poller.register(handle, zmq.POLLIN)
        poller.poll(max(0, int(1000 * seconds)))

    def _look(self) -> bool:
        """Whether a rank has ended since the last look."""
        ended = self._ranks.ended() if self._ranks else self._ended
        fresh = ended.keys() - self._ended.keys()
        for rank in sorted(fresh):
            self._say(f"rank {rank} has ended: {ended[rank]}")
        self._ended = ended
        return bool(fresh)

    def _tell(self, leaving: str = "") -> None:
        offer = self._offer
        said = GroupHost(
            host=self._host,
            version=__version__,
            torch=version("torch"),
            offers=offer.ranks,
            rank=offer.rank,
            world=offer.world,
            generation=self._generation,
            ended=[RankEnd(rank=rank, how=how[:4000]) for rank, how in self._ended.items()],
            leaving=leaving,
        )
        self._endpoint.send(self._sealer.seal(said.KIND, dump(said))[1])

    def _obey(self, place: GroupPlace) -> bool:
        """Do as the learner says; -> whether all is over."""
        self._heard, self._met = time.monotonic(), True
        if place.left and not self._left:
            self._say(f"the learner has left; unless one comes back within {LEFT_S:g} s, the run is over")
        self._left = place.left
        if place.said and place.said != self._said:
            self._say(place.said)
        self._said = place.said
        if place.refused:
            raise UserMistake(f"refused by the learner at {self._address}: {place.said}")
        if place.over:
            self._say("the learner has trained to its end")
            return True
        if place.generation != self._generation:
            self._end()
            if place.generation:
                self._start(place)
        return False

    def _missing(self, now: float) -> int | None:
        """What follows from silence; -> exit code, None to go on."""
        silent = now - self._heard
        if self._generation and silent > SILENCE_S:
            self._say(f"the learner has not been heard of for {SILENCE_S:g} s: its ranks here are ended")
            self._end()
        if self._left and silent > LEFT_S:
            self._say("the learner has left, and none has come back: the run is over")
            return OK
        if silent > self._wait_s:
            key = "" if self._met else ", or its key is another: copy the ticket anew"
            self._say(f"no learner at {self._address} for {self._wait_s:g} s{key}")
            return FAILED
        return None

    def _start(self, place: GroupPlace) -> None:
        """Ranks of a new group."""
        folder, apart = self._folder(place)
        part = next((name for name in place.files if name.startswith("parts/")), "")
        try:
            settings = Settings.read(folder, place.service, str(folder / part) if part else "")
        except UserMistake as error:
            self._tell(leaving=f"the learner's configuration cannot be used there: {error}")
            raise
        own = {"RUN_DIR": str(folder), "NAME": place.service, "PART": str(folder / part) if part else ""}
        common = contract(place.world, place.address, place.port, place.generation) | network(place.address)
        if apart:
            common["MIDFLIGHT_APART"] = str(place.first)
        marks = {f"MIDFLIGHT_{key}": value for key, value in own.items()}
        ranks = range(place.first, place.first + place.count)
        whole = {**os.environ, **environment(settings.config), **common, **marks}
        self._ranks = Launched(ranks, self._offer.local, folder / "logs", place.service, whole)
        self._generation = place.generation
        self._say(f"runs {_named(ranks)} of {place.world} of {place.run_id}; logs in {folder / 'logs'}")

    def _folder(self, place: GroupPlace) -> tuple[Path, bool]:
        """Where ranks read and write, and whether that is apart from the run directory."""
        info = RunDir(place.run_dir).info() if not self._given else None
        if info and info.run_id == place.run_id:
            return Path(place.run_dir), False
        folder = (self._given or Path("runs") / f"{place.run_id}.rank-{place.first}").absolute()
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        for path in (folder, folder / "logs", folder / "checkpoints", folder / "parts"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in place.files.items():
            json.loads(text)
            atomic_write(folder / name, text.encode())
        return folder, True

    def _end(self) -> None:
        """No rank is left."""
        if self._ranks:
            self._ranks.close()
            self._ranks = None
        self._generation = ""
        self._ended = {}

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number


def _named(ranks: range) -> str:
    return f"rank {ranks.start}" if len(ranks) == 1 else f"ranks {ranks.start} to {ranks.stop - 1}"


def join(ticket: Path, ranks: int, folder: Path | None, wait_s: float, say: Say) -> int:
    """`midflight join`; -> exit code. Raises UserMistake."""
    return Joiner(found(ticket, wait_s, say), Offer.here(ranks), folder, wait_s, say).run()
