"""What should happen to the children next: start, restart, stop, give up, end. The deciding half of supervision."""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from midflight.messages.base import Scalar

from .commands import Command, Emit, Kill, RunOver, Spawn
from .instance import UP, Instance, State
from .ladder import DRAIN, KILL, TERM, Ladder
from .mistake import EXIT_MISTAKE
from .registry import Registry
from .restart import Exit, GiveUp, Restart
from .roster import Child, ChildSpec, Roster

Mode = Literal["drain", "stop", "kill"]
MODES: tuple[Mode, ...] = ("drain", "stop", "kill")


@dataclass(slots=True)
class Stop:
    """The end of the run, once asked for."""

    mode: Mode
    why: str
    code: int


class Fleet:
    """The children, their instances, and the decisions over them."""

    def __init__(
        self,
        specs: Mapping[str, ChildSpec],
        rng: random.Random,
        ladder: Ladder | None = None,
        spec_of: Callable[[str, str], ChildSpec] | None = None,
    ) -> None:
        """`spec_of(slot, part)`: the configuration that a swap brought; of part "" that of the topology."""
        self.roster = Roster(specs)
        self.registry = Registry()
        self.ladder = ladder or Ladder()
        self.spec_of = spec_of or (lambda slot, part: specs[slot])
        self.parts: dict[str, str] = {}
        """Slot -> the configuration that its replicas have by now, where it is not the topology's."""
        self.former: dict[str, str] = {}
        """Slot -> the configuration before its last swap."""
        self.swaps = 0
        """How many swaps there have been."""
        self.stop: Stop | None = None
        self.over = False
        self._rng = rng
        self._started = False
        self._handing: set[tuple[str, int]] = set()
        """Successors whose predecessor was asked for its state by this incarnation of the kernel."""
        for child in self.roster:
            self.registry.add(child.name, child.slot, child.spec.kind, child.spec.heartbeat_timeout_s)

    def _add(self, name: str, slot: str) -> Child:
        """One more child, which starts when it can."""
        part = self.parts.get(slot, "")
        child = self.roster.add(name, slot, self.spec_of(slot, part), part)
        self.registry.add(name, slot, child.spec.kind, child.spec.heartbeat_timeout_s)
        return child

    def dump(self) -> dict[str, Any]:
        """Return everything a successor needs, as plain values for the journal."""
        return {
            "instances": self.registry.dump(),
            "children": {child.name: {"slot": child.slot, **child.dump()} for child in self.roster},
            "parts": dict(self.parts),
            "former": dict(self.former),
            "swaps": self.swaps,
            "stop": asdict(self.stop) if self.stop else None,
        }

    def load(self, state: Mapping[str, Any], *, new_run: bool = False) -> None:
        """Continue from `dump()`, before the first input. With `new_run` (another warden) only generations count."""
        if new_run:
            self.registry.load_generations(state["instances"])
            return
        self.parts, self.former, self.swaps = dict(state["parts"]), dict(state["former"]), state["swaps"]
        for name, dumped in state["children"].items():
            child = self.roster.by_name.get(name) or self._add(name, dumped["slot"])
            child.load(dumped)
            child.configure(child.part, self.spec_of(child.slot, child.part))
        self.registry.load(state["instances"])
        self.stop = Stop(**state["stop"]) if state["stop"] else None

    def outgrow(self, used: Iterable[tuple[str, int]]) -> None:
        """Never hand out these (name, generation) again; before the first input."""
        for name, generation in used:
            self.registry.outgrow(name, generation)

    def _of(self, child: Child) -> Instance:
        return self.registry.owned[child.name]

    def _mark(self, child: Child, state: State, cause: str | None = None) -> list[Command]:
        """Enter a state and say so."""
        instance = self._of(child)
        instance.state = state
        if cause is not None:
            instance.cause = cause
        return [self._event(child)]

    def _event(self, child: Child, instance: Instance | None = None) -> Emit:
        one = instance or self._of(child)
        body: dict[str, Scalar] = {"name": child.name, "slot": child.slot, "generation": one.generation}
        body |= {"state": one.state, "pid": one.pid, "restarts": child.restarts, "cause": one.cause}
        body |= {"role": one.role, "paused": child.paused, "retired": child.retired}
        if one is self._of(child):
            return Emit("service.state", child.name, body)
        return Emit("service.state", one.identity, body, final=not one.live)

    def _advance(self, now: float) -> list[Command]:
        """Whatever has become possible: starts, or the next steps of the end."""
        if not self._started or self.over:
            return []
        return self._walk_down(now) if self.stop else [*self._begin_swaps(now), *self._start_due(now)]

    def _begin_swaps(self, now: float) -> list[Command]:
        """Replacements that wait for their turn; see `swap.py`."""
        return []

    def _start_due(self, now: float) -> list[Command]:
        out: list[Command] = []
        for child in self.roster:
            if not child.wanted or self._of(child).live or child.strays or now < child.due:
                continue
            if broken := self._broken_dependency(child):
                out += self._give_up(child, f"cannot start: it depends on {broken}, which has failed", now)
            elif self._may_start(child):
                instance = self.registry.begin(child.name, child.spec.start_timeout_s, now, child.part)
                beside = child.name in self.registry.beside
                out += [self._event(child), Spawn(child.name, instance.generation, child.slot, child.part, beside)]
        return out

    def _may_start(self, child: Child) -> bool:
        """Dependencies are up or have left, and companions that restart with it are gone."""
        needed = [d for replicas in self.roster.dependencies(child) for d in replicas]
        if any(d.wanted and self._of(d).state not in UP for d in needed):
            return False
        return not any(other.asked and self._of(other).live for other in self.roster.companions(child))

    def _broken_dependency(self, child: Child) -> str:
        """The slot it depends on of which every replica has failed, or the empty string."""
        for replicas in self.roster.dependencies(child):
            if replicas and all(d.failed for d in replicas):
                return replicas[0].slot
        return ""

    def _decide(self, child: Child, ended: Exit, now: float) -> list[Command]:
        """What follows an exit that nobody asked for."""
        barren = child.barren if self._of(child).barren(now) else []
        decision = child.policy.decide(child.history, ended, now, self._rng, barren)
        if isinstance(decision, GiveUp):
            return self._give_up(child, decision.why, now, EXIT_MISTAKE if decision.mistake else 1)
        if isinstance(decision, Restart):
            child.history = [*child.policy.recent(child.history, now), now]
            child.barren = [*barren, now] if self._of(child).barren(now) else []
            child.restarts += 1
            child.due = now + decision.after_s
            out = self._mark(child, "backoff", ended.text())
            for other in self.roster.companions(child):
                other.due = max(other.due, child.due)
                out += self._ask(other, TERM, now, f"restarts with {child.name}")
            return out
        child.wanted = False
        out = self._mark(child, "stopped", ended.text())
        if child.spec.significant and not any(c.wanted for c in self.roster.select(child.slot)):
            how = "finished" if ended.normal else f"left: {ended.text()}"
            out += self.request_stop("drain", f"{child.name} {how}", now, 0 if ended.normal else 1)
        return out

    def _give_up(self, child: Child, why: str, now: float, code: int = 1) -> list[Command]:
        """End the run with `code` if nobody is left who does what it did, or the user is to blame; else go on.

        Nobody is left when its slot is significant and this was the last replica. A one_for_all group fails as one.
        """
        child.wanted, child.failed = False, True
        out = self._mark(child, "failed", why)
        grouped = child.spec.strategy == "one_for_all"
        last = grouped or not any(other.wanted for other in self.roster.select(child.slot))
        ends = (child.spec.significant and last) or code == EXIT_MISTAKE
        fate = "the run ends" if ends else "the run goes on without it"
        body: dict[str, Scalar] = {"name": child.name, "slot": child.slot, "why": f"{why}; {fate}"}
        out.append(Emit("service.failed", child.name, body))
        if grouped:
            for other in self.roster.companions(child):
                other.wanted, other.failed = False, True
                if self._of(other).live:
                    out += self._climb(other, TERM, now, f"its group fails with {child.name}")
                else:
                    out += self._mark(other, "failed", f"its group fails with {child.name}")
        if ends:
            out += self.request_stop("drain", f"{child.name}: {why}", now, code)
        return out

    def _ask(self, child: Child, rung: int, now: float, why: str) -> list[Command]:
        """Make a live child end so that it starts again; its exit is then no fault of its own."""
        if not self._of(child).live or self._of(child).rung >= rung:
            return []
        child.asked = True
        return self._climb(child, rung, now, why)

    def _climb(self, child: Child, rung: int, now: float, why: str, instance: Instance | None = None) -> list[Command]:
        """Go up the stop ladder and say so; the current incarnation, if no other is meant."""
        one = instance or self._of(child)
        steps = self.ladder.climb(child.spec, one, rung, now, why) if one.live else []
        return [self._event(child, one), *steps] if steps else []

    def _stray(self, name: str, generation: int, now: float) -> list[Command]:
        """A process that must not live: of no known name, or of another generation than the current one."""
        child = self.roster.by_name.get(name)
        why = "not a service of this run" if child is None else "not the current generation"
        if child:
            child.strays[generation] = now + 2 * self.ladder.kill_s
        return [Kill(name, generation, 9, why)]

    def _adopt(self, child: Child, generation: int, pid: int, now: float) -> Instance:
        """Go on with a process that a former kernel started."""
        known = [one for one in self.registry.incarnations(child.name) if one.live and one.generation == generation]
        if known:
            instance = known[0]
        else:
            self.registry.outgrow(child.name, generation - 1)
            instance = self.registry.begin(child.name, child.spec.start_timeout_s, now, child.part)
        limit = max(instance.phase_deadline - instance.last_seen, 0.0)
        instance.pid = pid
        instance.heard(now, instance.phase, limit)
        return instance

    def _raise_code(self, why: str) -> list[Command]:
        """The end of the run itself went wrong: its exit code becomes 1, unless it is an error already."""
        if not self.stop or self.stop.code:
            return []
        self.stop.code, self.stop.why = 1, why
        return [self._ending(why)]

    def _ending(self, why: str) -> Command:
        assert self.stop is not None
        body: dict[str, Scalar] = {"state": "stopping", "mode": self.stop.mode, "code": self.stop.code, "why": why}
        return Emit("run.state", "run", body)

    def request_stop(self, mode: Mode, why: str, now: float, code: int = 0) -> list[Command]:
        """End the run: drain, stop (SIGTERM, still in order) or kill (all at once). May only get harsher.

        `code` is the run's exit code; the first request names it and the reason, a later one may make it worse.
        """
        if self.stop and MODES.index(mode) <= MODES.index(self.stop.mode):
            return []
        self.stop = Stop(mode, self.stop.why if self.stop else why, max(self.stop.code, code) if self.stop else code)
        out = [self._ending(why)]
        for child in self.roster:
            child.wanted = False
            if self._of(child).state == "backoff":
                out += self._mark(child, "stopped")
        return out + self._advance(now)

    def _walk_down(self, now: float) -> list[Command]:
        """Stop whoever nobody live depends on any more, last started first; then the run is over."""
        assert self.stop is not None
        out: list[Command] = []
        rung = {"drain": DRAIN, "stop": TERM, "kill": KILL}[self.stop.mode]
        others = any(self._holds(child, now) for child in self.roster if not child.spec.stop_last)
        for child in reversed(list(self.roster)):
            if not self._holds(child, now) or (child.spec.stop_last and others and rung != KILL):
                continue
            needed_by = [one for one in self.roster.dependents(child) if one.spec.stop_last <= child.spec.stop_last]
            if rung == KILL or not any(self._holds(one, now) for one in needed_by):
                for instance in self.registry.incarnations(child.name):
                    out += self._climb(child, rung, now, self.stop.why, instance)
        if not any(self._holds(child, now) or child.strays for child in self.roster):
            self.over = True
            left = [instance.identity for instance in self.registry.all_owned() if instance.live]
            if left:
                out += self._raise_code(self.stop.why)
            why = self.stop.why + (f"; did not die: {', '.join(left)}" if left else "")
            body: dict[str, Scalar] = {"state": "over", "mode": self.stop.mode, "code": self.stop.code, "why": why}
            out += [Emit("run.state", "run", body), RunOver(self.stop.code, why)]
        return out

    def _holds(self, child: Child, now: float) -> bool:
        """Whether the run's end must still wait for it."""
        return any(one.live and not self.ladder.lost(one, now) for one in self.registry.incarnations(child.name))
