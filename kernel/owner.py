"""Between the supervisor's decisions and the processes: what the kernel asks of the warden, and what it hears back."""

import os
import sys
from collections.abc import Iterator
from typing import Final, Protocol

from .commands import Command, Kill, Spawn
from .instance import Instance
from .parts import Parts
from .process import ancestry
from .restart import Exit
from .spec import ServiceSpec
from .supervisor import Listing, Supervisor
from .warden_link import Done, Refused, Spawned, Stopping, WardenLink
from .warden_link import Exit as Ended
from .warden_link import Listing as Children

PING_S: Final = 1.0


class Owner(Protocol):
    """Whoever owns the processes of a run; the warden, or a test's."""

    warden: int
    """Its process id; a new one means a new run of the same directory."""

    def hear(self, supervisor: Supervisor, now: float) -> Iterator[list[Command]]:
        """What happened since the last call, put to the supervisor."""
        ...

    def spawn(self, command: Spawn) -> None:
        """Start a generation."""
        ...

    def kill(self, command: Kill) -> None:
        """Signal a generation."""
        ...

    def end(self, code: int) -> None:
        """The run is over."""
        ...

    def pids(self, peer: int | None, said: int) -> list[int]:
        """The process that speaks, and its ancestors."""
        ...

    def over_memory(self, supervisor: Supervisor) -> list[tuple[Instance, str]]:
        """Instances beyond their declared memory, with the reason."""
        ...

    def handle(self, pid: int) -> int | None:
        """A descriptor that is readable when the process has ended; None where there is none to be had."""
        ...


class WardenOwner:
    """The real one."""

    def __init__(self, link: WardenLink, parts: Parts) -> None:
        self.link, self.parts = link, parts
        self.warden = os.getppid()
        self._asked: dict[int, tuple[str, int]] = {}
        """Requests under way, by their number: what they are about."""
        self._next_ping = 0.0
        link.list_children()

    def hear(self, supervisor: Supervisor, now: float) -> Iterator[list[Command]]:
        """Answers and exits. A refused spawn never lived, and a refused kill has no process: both are exits."""
        for event in self.link.receive():
            match event:
                case Children():
                    living = tuple((child.name, child.generation, child.pid) for child in event.children)
                    exits = tuple((ended.name, ended.generation, _exit(ended)) for ended in event.exits)
                    yield supervisor.on_started(Listing(living, exits), now)
                case Spawned():
                    self._asked.pop(event.id, None)
                    yield supervisor.on_spawned(event.name, event.generation, event.pid, now)
                case Ended():
                    yield supervisor.on_exit(event.name, event.generation, _exit(event), now)
                case Refused(id=int(number), why=why) if number in self._asked:
                    name, generation = self._asked.pop(number)
                    yield supervisor.on_exit(name, generation, Exit(code=127, why=why), now)
                case Stopping():
                    yield supervisor.request_stop("stop", "the warden was asked to end the run", now)
                case Done():
                    self._asked.pop(event.id, None)
                case Refused():
                    pass
        if now >= self._next_ping:
            self._next_ping = now + PING_S
            self.link.ping()

    def spawn(self, command: Spawn) -> None:
        """Exec the service's interpreter with its limits and thread settings in the environment."""
        spec = self.parts.spec(command.slot, command.part)
        argv = [sys.executable, "-P", "-m", "midflight.kernel.boot"]
        env = environment(spec)
        if command.part:
            env["MIDFLIGHT_PART"] = str(self.parts.path(command.part))
        number = self.link.spawn(command.name, command.generation, argv, env, beside=command.beside)
        self._asked[number] = (command.name, command.generation)

    def kill(self, command: Kill) -> None:
        """Signal it; the exit is reported when it happens."""
        number = self.link.kill(command.name, command.generation, command.signal)
        self._asked[number] = (command.name, command.generation)

    def end(self, code: int) -> None:
        """Nothing is left to stop but the kernel itself."""
        self.link.stop(1.0, code)

    def pids(self, peer: int | None, said: int) -> list[int]:
        """What the socket says, not what the message says."""
        return ancestry(peer) if peer else []

    def over_memory(self, supervisor: Supervisor) -> list[tuple[Instance, str]]:
        """Resident memory of every service with a limit, from /proc."""
        found = []
        for instance in supervisor.registry.all_owned():
            limit = self.parts.spec(instance.slot, instance.part).memory_limit_mb
            if limit and instance.live and instance.pid:
                used = resident_mb(instance.pid)
                if used > limit:
                    found.append((instance, f"memory: {used} MiB resident, its limit is {limit} MiB"))
        return found

    def handle(self, pid: int) -> int | None:
        """A pidfd."""
        try:
            return os.pidfd_open(pid)
        except OSError:
            return None


def environment(spec: ServiceSpec) -> dict[str, str]:
    """Thread settings that must be there before torch is imported, then the topology's own variables.

    Waiting OpenMP threads that spin cost a thirtyfold slow-down when processes share cores. Memory that a step frees
    is not handed back to the system only to be faulted in again by the next. The three limits belong together: any that
    is set stops glibc from raising the first by itself, and beyond those 64 MiB every tensor of 128 KiB is a mapping of
    its own, new in each step: a 5 M model trains at half its speed. 32 MiB is as high as glibc's own would get.
    """
    threads = str(spec.threads)
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
        "MIDFLIGHT_NICE": str(spec.nice),
        **spec.env,
    }


def resident_mb(pid: int) -> int:
    """Resident memory of a process, MiB; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def _exit(ended: Ended) -> Exit:
    why = "killed for want of memory (a guess)" if ended.oom else ""
    return Exit(code=ended.code, signal=ended.signal, tail=ended.out, why=why)
