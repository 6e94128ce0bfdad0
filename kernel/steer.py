"""What people ask of running services: pause, resume, drain, restart, kill, scale. Pure, like all supervision."""

from collections.abc import Callable
from difflib import get_close_matches

from .commands import Command
from .ladder import DRAIN, KILL
from .refusal import Refusal
from .roster import Child
from .swap import Swapping

Answer = list[Command] | Refusal


class Steering(Swapping):
    """Each request names a process, or a slot, which means all its replicas."""

    def request_restart(self, name: str, why: str, now: float) -> Answer:
        """Restart, drained first, together with whoever its strategy names. One that has left is started afresh.

        Refusal codes, here and below: `unknown`, `stopping`.
        """

        def restart(child: Child) -> list[Command]:
            out: list[Command] = []
            if not self._of(child).live:
                child.wanted, child.failed, child.due = True, False, now
                child.absolve()
                out += self._mark(child, "stopped", why)
            for other in (child, *self.roster.companions(child)):
                out += self._ask(other, DRAIN, now, why)
            return out

        return self._each(name, restart, now, alone=True)

    def request_kill(self, name: str, why: str, now: float) -> Answer:
        """SIGKILL; what follows is its restart policy's to say."""
        return self._each(name, lambda child: self._climb(child, KILL, now, why), now)

    def request_drain(self, name: str, why: str, now: float) -> Answer:
        """Finish the work in hand and leave; it stays away until it is restarted or scaled up."""

        def drain(child: Child) -> list[Command]:
            child.wanted = False
            if not self._of(child).live:
                return self._mark(child, "stopped", why)
            return self._climb(child, DRAIN, now, why)

        return self._each(name, drain, now, alone=True)

    def request_pause(self, name: str, paused: bool, now: float) -> Answer:
        """Take no new work, or take it again. A restarted process is as its predecessor was."""

        def pause(child: Child) -> list[Command]:
            child.paused = paused
            return [self._event(child)]

        return self._each(name, pause, now)

    def request_scale(self, slot: str, replicas: int, why: str, now: float) -> Answer:
        """So many replicas from now on: new ones start when they can, the last ones drain and leave."""
        if slot not in self.roster.specs:
            return self._unknown(slot)
        if self.stop:
            return Refusal("stopping", f"the run is ending: {self.stop.why}")
        out: list[Command] = []
        present = self.roster.select(slot)
        if any(child.swap for child in present):
            return Refusal("busy", f"{slot} is being replaced; scale it when that is done")
        for child in reversed(present[replicas:]):
            child.retired, child.wanted = True, False
            out += self._climb(child, DRAIN, now, why) if self._of(child).live else self._mark(child, "stopped", why)
        while len(self.roster.select(slot)) < replicas:
            out += self._another(slot, now)
        return out + self._advance(now)

    def _another(self, slot: str, now: float) -> list[Command]:
        name = self.roster.vacant(slot)
        child = self.roster.by_name.get(name) or self._add(name, slot)
        part = self.parts.get(slot, "")
        child.configure(part, self.spec_of(slot, part))
        child.retired, child.wanted, child.failed, child.due = False, True, False, now
        child.absolve()
        return [self._event(child)]

    def _each(self, name: str, action: Callable[[Child], list[Command]], now: float, *, alone: bool = False) -> Answer:
        """`alone`: not while it is being replaced."""
        chosen = self.roster.select(name)
        if not chosen:
            return self._unknown(name)
        if self.stop:
            return Refusal("stopping", f"the run is ending: {self.stop.why}")
        if alone and any(child.swap for child in chosen):
            return Refusal("busy", f"{name} is being replaced; `midflight ctl rollback {chosen[0].slot}` takes it back")
        return [command for child in chosen for command in action(child)] + self._advance(now)

    def _unknown(self, name: str) -> Refusal:
        if name in self.roster.specs:
            return Refusal("unknown", f"{name} is scaled to 0; `midflight service scale {name} N` brings it back")
        if name in self.registry.attached:
            text = f"{name} is attached from outside and no service; `midflight ctl detach {name}` ends it"
            return Refusal("unknown", text)
        near = get_close_matches(name, [*self.roster.by_name, *self.roster.slots], 1)
        hint = f" - did you mean {near[0]!r}?" if near else ""
        return Refusal("unknown", f"there is no service {name!r}{hint}")
