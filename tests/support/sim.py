"""A whole run in one process: the real kernel and real actors on the in-memory network, with a virtual clock.

`World` stands in for the warden: it starts actors when the kernel says so, crashes them when told to, and reports
exits. Every choice comes from one seed.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midflight.kernel.commands import Command, Kill, Spawn
from midflight.kernel.instance import Instance
from midflight.kernel.kernel import Kernel
from midflight.kernel.node import Node
from midflight.kernel.parts import Parts
from midflight.kernel.restart import Exit
from midflight.kernel.spec import ServiceSpec
from midflight.kernel.supervisor import Listing, Supervisor
from midflight.messages.memory import Network
from midflight.messages.sockets import Incoming

BINDS = {"ctl": "kernel#0", "ev": "kernel#0", "data": "ledger#0"}
START_S = 0.05
Make = Callable[[str, "SimBus"], Node]


@dataclass
class SimBus:
    """The `Bus` of one node."""

    network: Network
    identity: str

    def now(self) -> float:
        """Virtual seconds."""
        return self.network.clock

    def send(self, port: str, frames: list[bytes], to: str = "") -> bool:
        """Through the network."""
        return self.network.send(self.identity, port, frames, to)


@dataclass
class Memory:
    """A journal in memory."""

    records: list[Any] = field(default_factory=list)

    def append(self, value: object) -> None:
        """Keep it."""
        self.records.append(value)

    def flush(self) -> bool:
        """Always there."""
        return True


@dataclass
class Process:
    """A node with an exit: what the network drives."""

    world: "World"
    node: Node
    name: str
    generation: int

    def deliver(self, port: str, incoming: Incoming) -> None:
        """A message; a handler that raises ends the process."""
        self._guard(lambda: self.node.deliver(port, incoming))

    def turn(self, now: float) -> float:
        """A turn; an exit code ends the process."""
        wait = [0.01]
        self._guard(lambda: wait.__setitem__(0, self.node.turn(now)))
        if self.node.exit_code is not None:
            self.world.ended(self, Exit(code=self.node.exit_code))
        return max(wait[0], 0.002)

    def _guard(self, action: Callable[[], object]) -> None:
        try:
            action()
        except AssertionError:
            raise
        except Exception as error:
            self.world.faults.append(f"{self.name}#{self.generation}: {error!r}")
            self.world.ended(self, Exit(code=1, why=repr(error)))


class VariantParts(Parts):
    """Swapped configurations are known by the `variant` they name; what is made of them is in `World.make`."""

    def put(self, slot: str, text: str, python_path: list[str]) -> str:
        """No file is needed."""
        return str(json.loads(text)["variant"])

    def spec(self, slot: str, name: str) -> ServiceSpec:
        """As the slot's."""
        return self.topology[slot]


class World:
    """Kernel, actors, and the processes they live in."""

    warden = 1

    def __init__(self, seed: int, specs: Mapping[str, ServiceSpec], make: Mapping[str, Make], **network: float) -> None:
        self.network = Network(seed, dict(BINDS), **network)  # type: ignore[arg-type]
        self.specs, self.make = dict(specs), dict(make)
        self.parts = VariantParts(Path(), self.specs)
        self.random = random.Random(seed)
        self.journal = Memory()
        self.living: dict[str, Process] = {}
        self.faults: list[str] = []
        self.code: int | None = None
        self._inbox: list[Callable[[Supervisor, float], list[Command]]] = []
        self._pids = 1000
        self.start_kernel()

    # processes

    def start_kernel(self) -> None:
        """A (new) incarnation of the kernel, which reads the journal and finds who lives."""
        bus = SimBus(self.network, "kernel#0")
        supervisor = Supervisor(self.specs, random.Random(self.random.random()), spec_of=self.parts.spec)
        self.kernel = Kernel("kernel#0", bus, "sim-00000000", supervisor, self, self.journal, self.parts)
        self.kernel.recover(None, list(self.journal.records))
        living = tuple((p.name, p.generation, self.network.pids[i]) for i, p in self.living.items())
        self._inbox = [lambda s, now: s.on_started(Listing(living, ()), now)]
        self.network.join("kernel#0", self.kernel)

    def crash_kernel(self, away: float = 0.2) -> None:
        """SIGKILL the kernel; the warden starts another one."""
        self.network.crash("kernel#0")
        self._inbox.clear()
        self.network.at(away, self.start_kernel)

    def crash(self, name: str) -> None:
        """SIGKILL the living service of that name, or the one of that identity, if any."""
        for identity, process in list(self.living.items()):
            if name in (process.name, identity):
                self.ended(process, Exit(signal=9))

    def stop(self, name: str) -> None:
        """SIGSTOP: the process lives and does nothing."""
        for identity, process in self.living.items():
            if process.name == name:
                self.network.crash(identity)

    def ended(self, process: Process, how: Exit) -> None:
        """A process is gone; the kernel hears of it."""
        identity = f"{process.name}#{process.generation}"
        if self.living.pop(identity, None):
            self.network.crash(identity)
            self._inbox.append(lambda s, now: s.on_exit(process.name, process.generation, how, now))

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Let virtual time pass, to the end of the run at most."""
        self.network.run(until, lambda: self.code is not None or stop())

    # the warden's side, as `kernel.owner.Owner`

    def hear(self, supervisor: Supervisor, now: float) -> Iterator[list[Command]]:
        """What happened since the last call."""
        inbox, self._inbox = self._inbox, []
        for event in inbox:
            yield event(supervisor, now)

    def spawn(self, command: Spawn) -> None:
        """Start a generation after a moment."""
        self.network.at(START_S, lambda: self._spawned(command))

    def kill(self, command: Kill) -> None:
        """Any signal ends it."""
        process = self.living.get(f"{command.name}#{command.generation}")
        if process:
            self.ended(process, Exit(signal=command.signal))

    def end(self, code: int) -> None:
        """The run is over."""
        self.code = code

    def pids(self, peer: int | None, said: int) -> list[int]:
        """What the network knows."""
        return [peer] if peer else []

    def over_memory(self, supervisor: Supervisor) -> list[tuple[Instance, str]]:
        """Nobody."""
        return []

    def handle(self, pid: int) -> None:
        """No such thing here."""

    def _spawned(self, command: Spawn) -> None:
        identity = f"{command.name}#{command.generation}"
        if identity in self.living:
            return
        self._pids += 1
        pid = self._pids
        make = self.make[f"{command.slot}@{command.part}" if command.part else command.slot]
        node = make(identity, SimBus(self.network, identity))
        process = Process(self, node, command.name, command.generation)
        self.living[identity] = process
        self._inbox.append(lambda s, now: s.on_spawned(command.name, command.generation, pid, now))
        self.network.join(identity, process, pid)
