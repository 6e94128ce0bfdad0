"""A simulated warden and its services around one supervisor, on a virtual clock."""

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgpack

from midflight.kernel.commands import Command, Flip, HandOver, Kill, RunOver, SendDrain, Spawn
from midflight.kernel.ladder import Ladder
from midflight.kernel.refusal import Refusal
from midflight.kernel.registry import Greeting
from midflight.kernel.restart import Exit, Kind, Strategy
from midflight.kernel.roster import Takeover
from midflight.kernel.supervisor import Beat, Listing, Supervisor

Manner = Literal["good", "mute", "hung", "deaf", "barren"]
"""good: as it should be. mute: never says hello. hung: no heartbeats. deaf: only SIGKILL ends it. barren: lives, and
nothing comes of its work."""


@dataclass(frozen=True)
class Spec:
    """A slot's configuration with small times."""

    kind: str = "any"
    replicas: int = 1
    restart: Kind = "permanent"
    strategy: Strategy = "one_for_one"
    significant: bool = False
    stop_last: bool = False
    depends_on: Sequence[str] = ()
    start_timeout_s: float = 5.0
    heartbeat_timeout_s: float = 2.0
    intensity: int = 5
    period_s: float = 60.0
    backoff_s: float = 0.05
    backoff_max_s: float = 2.0
    shutdown_s: float = 4.0
    takeover: Takeover = "beside"


@dataclass
class Process:
    """A simulated child: what it does, and what it has said."""

    name: str
    generation: int
    pid: int
    manner: Manner
    said: set[str] = field(default_factory=set)
    draining: bool = False
    phase: str = ""


NOBODY = Process("", 0, 0, "good")


class World:
    """Warden and services around one supervisor, on a virtual clock; checks the promises at every command."""

    def __init__(self, specs: dict[str, Spec], seed: int = 0) -> None:
        self.specs, self.seed, self.now = specs, seed, 1000.0
        self.manner: Callable[[Spawn], Manner] = lambda spawn: "good"
        self.living: dict[str, Process] = {}
        self.beside: dict[str, Process] = {}
        """The older of two generations of a name."""
        self.handed: list[HandOver] = []
        self.flips: list[Flip] = []
        self.unheard: list[tuple[str, int, Exit]] = []
        self.log: list[tuple[float, Command]] = []
        self.highest: dict[str, int] = {}
        self.over: RunOver | None = None
        self.drain_takes_part = True
        self.supervisor = self.fresh()

    def fresh(self) -> Supervisor:
        """Build a supervisor that knows nothing."""
        return Supervisor(self.specs, random.Random(self.seed), Ladder(term_s=1.0, kill_s=1.0, drain_max_s=30.0))

    def start(self) -> None:
        """The kernel's first input."""
        living = tuple((p.name, p.generation, p.pid) for p in (*self.living.values(), *self.beside.values()))
        exits, self.unheard = tuple(self.unheard), []
        self.obey(self.supervisor.on_started(Listing(living, exits), self.now))

    def obey(self, commands: list[Command] | Refusal) -> None:
        """Carry commands out as warden and services would."""
        assert not isinstance(commands, Refusal)
        for command in commands:
            assert self.over is None, f"{command} after the run was over"
            self.log.append((self.now, command))
            match command:
                case Spawn(name, generation):
                    assert (name in self.living) == command.beside, f"second live generation of {name}"
                    if command.beside:
                        self.beside[name] = self.living.pop(name)
                    assert generation > self.highest.get(name, 0), "a generation came twice"
                    self.highest[name] = generation
                    process = Process(name, generation, 1000 + len(self.log), self.manner(command))
                    self.living[name] = process
                    self.obey(self.supervisor.on_spawned(name, generation, process.pid, self.now))
                case Kill(name, generation, number):
                    self.signalled(name, generation, number)
                case SendDrain(name, generation):
                    if (told := self.process(name, generation)) and told.manner == "good":
                        told.draining = True
                case HandOver(name, _, new):
                    self.handed.append(command)
                    self.obey(self.supervisor.on_handed(name, new, "", self.now))
                case Flip():
                    self.flips.append(command)
                case RunOver():
                    self.over = command

    def signalled(self, name: str, generation: int, number: int) -> None:
        """SIGKILL always ends a process, SIGTERM only one that listens."""
        process = self.process(name, generation)
        if process and (number == signal.SIGKILL or process.manner == "good"):
            self.die(name, Exit(signal=number), generation)

    def process(self, name: str, generation: int) -> Process | None:
        """The living process of this generation."""
        both = (self.living.get(name), self.beside.get(name))
        return next((one for one in both if one and one.generation == generation), None)

    def die(self, name: str, ended: Exit, generation: int = 0) -> None:
        """A process ends, the newest if no other is meant; the kernel will hear of it in the next step."""
        table = self.living if not generation or self.living.get(name, NOBODY).generation == generation else self.beside
        process = table.pop(name)
        if table is self.living and name in self.beside:
            self.living[name] = self.beside.pop(name)
        self.unheard.append((name, process.generation, ended))

    def step(self, dt: float = 0.2) -> None:
        """Let time pass, deliver exits, let services speak, tick."""
        self.now += dt
        unheard, self.unheard = self.unheard, []
        for name, generation, ended in unheard:
            self.obey(self.supervisor.on_exit(name, generation, ended, self.now))
        for process in [*self.living.values(), *self.beside.values()]:
            alive = self.process(process.name, process.generation) is process
            if alive and process.manner not in ("mute", "hung"):
                self.speak(process)
        self.obey(self.supervisor.on_tick(self.now))

    def speak(self, process: Process) -> None:
        """One turn of a service's main loop."""
        name, generation = process.name, process.generation
        boot = f"boot-{id(self.supervisor)}"
        if boot not in process.said:
            ready = "ready" in process.said
            greeting = Greeting(name, generation, f"{name}#{generation}", (process.pid,), boot, ready=ready)
            answer, commands = self.supervisor.on_hello(greeting, self.now)
            self.obey(commands)
            if not isinstance(answer, Refusal):
                process.said.add(boot)
        elif "ready" not in process.said:
            process.said.add("ready")
            self.obey(self.supervisor.on_ready(name, generation, self.now))
        elif process.draining and not process.phase and self.drain_takes_part:
            self.die(name, Exit(code=0), generation)
        else:
            done = 0 if process.manner == "barren" else len(self.log)
            beat = Beat(done, process.phase, 20.0 if process.phase else 0.0)
            self.obey(self.supervisor.on_heartbeat(name, generation, beat, self.now))

    def run(self, seconds: float) -> None:
        """Let many steps pass, or until the run is over."""
        end = self.now + seconds
        while self.now < end and not self.over:
            self.step()

    def kernel_restart(self, remember: bool = True) -> None:
        """Kill the kernel: a new supervisor with the journaled state (or none) meets the living services."""
        state = msgpack.unpackb(msgpack.packb(self.supervisor.dump()))
        self.supervisor = self.fresh()
        if remember:
            self.supervisor.load(state)
        self.start()

    def state(self, name: str) -> str:
        """The supervisor's view of a name."""
        return self.supervisor.registry.owned[name].state

    def of(self, kind: type) -> list[Command]:
        """All commands of one type, in order."""
        return [command for _, command in self.log if isinstance(command, kind)]

    def spawned(self) -> list[str]:
        """Names in the order of their spawns."""
        return [c.name for c in self.of(Spawn) if isinstance(c, Spawn)]

    def kills(self) -> list[tuple[str, int]]:
        """(name, signal) in order."""
        return [(c.name, c.signal) for c in self.of(Kill) if isinstance(c, Kill)]


DEMO = {
    "learner": Spec(depends_on=["ledger"], restart="transient", significant=True),
    "rollout": Spec(depends_on=["ledger", "reward"], replicas=2),
    "reward": Spec(depends_on=["ledger"]),
    "ledger": Spec(significant=True),
    "tracker": Spec(),
}


def up(specs: dict[str, Spec] | None = None) -> World:
    """A world in which everything runs."""
    world = World(DEMO if specs is None else specs)
    world.start()
    world.run(5.0)
    assert {world.state(name) for name in world.living} == {"running"}
    return world


def crash_storm(name: str, specs: dict[str, Spec] | None = None) -> World:
    """Let every incarnation of one child crash as soon as it is up."""
    world = up(specs)
    for _ in range(400):
        if name in world.living:
            world.die(name, Exit(code=1, tail="ValueError: boom"))
        world.step()
        if world.over:
            break
    return world
