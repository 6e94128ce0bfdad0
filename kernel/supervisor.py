"""Supervision as a pure state machine: events and the time in, commands out. No clock, no socket, no process.

Inputs are what the warden, the services and people say. Each returns the commands to carry out, in order. When they
contain an `Emit` the kernel makes `dump()` durable before it carries them out, so that a successor never hands out a
generation twice and knows who was told to stop.

Promises, whatever the order of inputs: at most one live generation of a name; generations only grow; a child that
should run is started again until its restart policy gives up, and then the run says why; a stop ends in bounded time.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from midflight.messages.base import Scalar

from .commands import Command, Emit, Gone, SendDrain
from .instance import Instance
from .ladder import KILL, TERM
from .refusal import Refusal
from .registry import Greeting
from .restart import Exit
from .roster import Child
from .steer import Steering

TICK_GAP_S = 1.0
"""Ticks further apart than this mean that the kernel itself was stopped: everybody gets the time back."""
ADOPT_GRACE_S = 2.0
"""Extra seconds for a service to find a restarted kernel."""


class Beat(NamedTuple):
    """One heartbeat. `phase` is the declared phase, empty for none; `phase_s` its limit on silence in seconds."""

    progress: int
    phase: str = ""
    phase_s: float = 0.0
    waits: tuple[tuple[str, float | None], ...] = ()
    stats: Mapping[str, Scalar] | None = None
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """The warden's answer to a new kernel: (name, generation, pid) of the living, and the exits nobody heard of."""

    living: tuple[tuple[str, int, int], ...] = ()
    exits: tuple[tuple[str, int, Exit], ...] = ()


class Supervisor(Steering):
    """Decides who starts, who is dead, who is stopped, and when the run is over."""

    _tick = 0.0

    # The warden speaks

    def on_started(self, listing: Listing, now: float) -> list[Command]:
        """First input: adopt what lives under its pid, hear of the exits meanwhile, then start what is missing."""
        self._tick = now
        out: list[Command] = []
        newest = {name: max(g for n, g, _ in listing.living if n == name) for name, _, _ in listing.living}
        for name, generation, pid in listing.living:
            child = self.roster.by_name.get(name)
            known = [one.generation for one in self.registry.incarnations(name)] if child else []
            if child and (generation in known or (generation == newest[name] and generation > max(known))):
                instance = self._adopt(child, generation, pid, now)
                instance.last_seen += ADOPT_GRACE_S
                instance.phase_deadline += ADOPT_GRACE_S
                instance.deadline = max(instance.deadline, now + ADOPT_GRACE_S)
                out.append(self._event(child, instance))
            else:
                out += self._stray(name, generation, now)
        for name, generation, ended in listing.exits:
            out += self.on_exit(name, generation, ended, now)
        alive = {(name, generation) for name, generation, _ in listing.living}
        for child in self.roster:
            for instance in self.registry.incarnations(child.name):
                if instance.live and (child.name, instance.generation) not in alive:
                    out += self._vanished(child, instance, now)
        self._started = True
        return out + self._advance(now)

    def on_spawned(self, name: str, generation: int, pid: int, now: float) -> list[Command]:
        """The warden started a process. A spawn that it refused is an exit with code 127 and the reason."""
        child = self.roster.by_name.get(name)
        known = [one for one in self.registry.incarnations(name) if one.generation == generation]
        if child is None or not known:
            return self._stray(name, generation, now)
        if not known[0].live:
            return []
        known[0].pid = pid
        return [self._event(child, known[0])]

    def on_exit(self, name: str, generation: int, ended: Exit, now: float) -> list[Command]:
        """A process is gone for good, and its process group with it. A repeat has no effect."""
        child = self.roster.by_name.get(name)
        if child is None:
            return []
        instance = self._of(child)
        if generation == instance.generation and instance.live:
            return [*self._buried(child, ended, now), *self._advance(now)]
        beside = self.registry.beside.get(name)
        if beside and beside.generation == generation and beside.live:
            return [*self._beside_ended(child, beside, ended, now), *self._advance(now)]
        child.strays.pop(generation, None)
        self.registry.outgrow(name, generation)  # a successor without a journal learns here what is used up
        return self._advance(now)

    # Services speak

    def on_hello(self, greeting: Greeting, now: float) -> tuple[Instance | Refusal, list[Command]]:
        """A peer introduces itself, for the first time or again; -> its instance or the refusal to send."""
        answer = self.registry.hello(greeting, now)
        if isinstance(answer, Refusal):
            return answer, []
        if not answer.owned:
            return answer, [_client_event(answer)]
        out: list[Command] = [self._event(self.roster.by_name[answer.name], answer)]
        if answer.state == "draining":
            left = max(answer.deadline - now, 0.0)
            out.append(SendDrain(answer.name, answer.generation, left, answer.cause))
        if greeting.ready:
            out += self.on_ready(answer.name, answer.generation, now)
        return answer, out

    def on_ready(self, name: str, generation: int, now: float) -> list[Command]:
        """A service has loaded and takes work; its dependents may start."""
        instance = self.registry.find(name, generation)
        if instance is None or instance.state != "loading":
            return []
        instance.heard(now, "", 0.0)
        child = self.roster.by_name[name]
        if instance is not self._of(child):
            return [*self._standby_ready(child, instance, now), *self._advance(now)]
        return [*self._mark(child, "ready"), *self._advance(now)]

    def on_heartbeat(self, name: str, generation: int, beat: Beat, now: float) -> list[Command]:
        """A sign of life from the main loop. Without effect from a fenced generation or before a hello."""
        instance = self.registry.find(name, generation)
        if instance is None or instance.state == "starting":
            return []
        phase_ended = bool(instance.phase) and not beat.phase
        instance.heard(now, beat.phase, beat.phase_s)
        instance.waits, instance.stats = beat.waits, dict(beat.stats or {})
        moved, instance.progress = beat.progress > instance.progress, beat.progress
        instance.failures = beat.failures
        if not instance.owned:
            return []
        child = self.roster.by_name[name]
        self.ladder.stretch(child.spec, instance, now, phase_ended)
        if not moved or instance.state != "ready":
            return []
        instance.state = "running"
        return [self._event(child, instance)]

    def on_leave(self, name: str, generation: int, why: str) -> list[Command]:
        """An attached client said goodbye, or its socket closed."""
        instance = self.registry.attached.get(name)
        if instance is None or instance.generation != generation:
            return []
        self.registry.detach(name, why)
        return [Gone(name, generation, why), _client_event(instance)]

    def told(self, instances: Iterable[Instance]) -> list[Command]:
        """Say that something about them has changed which a successor of the kernel must know."""
        return [
            self._event(self.roster.by_name[one.name], one) if one.owned else _client_event(one) for one in instances
        ]

    # Time and people

    def on_tick(self, now: float) -> list[Command]:
        """Deadlines. Call several times a second."""
        if not self._started or self.over:
            return []
        gap, self._tick = now - self._tick, now
        if gap > TICK_GAP_S:
            self._time_back(gap, now)
        out: list[Command] = []
        for child in self.roster:
            child.strays = {g: until for g, until in child.strays.items() if now < until}
            for instance in self.registry.incarnations(child.name):
                if why := instance.overdue(now):
                    out += self._climb(child, KILL, now, why, instance)
                if instance.live and (steps := self.ladder.due(child.spec, instance, now)):
                    out += [self._event(child, instance), *steps]
            out += self._swap_due(child, now)
        for lost in self.registry.silent(now):
            out += [Gone(lost.name, lost.generation, lost.cause), _client_event(lost)]
        return out + self._advance(now)

    def condemn(self, name: str, generation: int, why: str, now: float) -> list[Command]:
        """Kill a service for a fault that only the kernel sees, such as its memory; its policy says what follows."""
        instance = self.registry.find(name, generation)
        if instance is None or not instance.owned:
            return []
        return self._climb(self.roster.by_name[name], KILL, now, why, instance)

    def _buried(self, child: Child, ended: Exit, now: float) -> list[Command]:
        """Book the exit of the current incarnation and decide what follows."""
        instance = self._of(child)
        forced = instance.rung >= TERM
        if forced and not ended.why:
            ended = Exit(ended.code, ended.signal, ended.tail, instance.cause)
        asked, child.asked, instance.rung = child.asked, False, -1
        instance.phase, instance.waits = "", ()
        body: dict[str, Scalar] = {"name": child.name, "generation": instance.generation, "pid": instance.pid}
        body |= {"code": ended.code, "signal": ended.signal, "cause": ended.text(), "asked": asked}
        out: list[Command] = [Gone(child.name, instance.generation, ended.text()), Emit("service.exit", "", body)]
        if self.stop:
            if child.spec.significant and not forced and not ended.normal:
                out += self._raise_code(f"{child.name} failed while the run was ending: {ended.text()}")
            return out + self._mark(child, "stopped", ended.text())
        if (swapped := self._swap_ended(child, ended, now)) is not None:
            return out + swapped
        if not child.wanted:
            return out + self._mark(child, "failed" if child.failed else "stopped", ended.text())
        if asked:
            return out + self._mark(child, "stopped", ended.text())
        return out + self._decide(child, ended, now)

    def _vanished(self, child: Child, instance: Instance, now: float) -> list[Command]:
        """It should live, and the warden knows nothing of it: never spawned, or gone with a former warden."""
        lost = Exit(why="vanished while the kernel was away")
        if instance is not self._of(child):
            lost_start = instance.standby and instance.pid is None
            return self._start_lost(child) if lost_start else self._beside_ended(child, instance, lost, now)
        if instance.pid is None and not self.stop:
            instance.rung, child.asked = -1, False
            return self._mark(child, "stopped", "its start was lost with the former kernel")
        return self._buried(child, lost, now)

    def _time_back(self, gap: float, now: float) -> None:
        self.registry.time_back(gap, now)
        for child in self.roster:
            if child.swap:
                child.swap.since = min(child.swap.since + gap, now)
            child.strays = {generation: until + gap for generation, until in child.strays.items()}


def _client_event(instance: Instance) -> Emit:
    body: dict[str, Scalar] = {"name": instance.name, "generation": instance.generation, "kind": instance.kind}
    body |= {"state": instance.state, "pid": instance.pid, "cause": instance.cause, "slot": instance.slot}
    body |= {"role": instance.role}
    return Emit("client.state", instance.name, body, final=not instance.live)
