"""Replacing what runs in a slot while it works: the deciding half. Pure, like the rest of supervision.

One process of a slot is replaced at a time. How depends on the slot's `takeover`:

- beside  starting -> handing -> probation -> draining: the new one loads in standby, gets the old one's state, comes
  into force in one step, and works beside the old one until it has lived `probation_s` and made progress; only then is
  the old one drained. A controller that was replaced decides on without power meanwhile.
- after   starting -> handing -> stopping -> probation: the same, but the old one must have left before the new one may
  work (the tracker: two writers of one file).
- restart stopping -> probation: the old one is drained and leaves a checkpoint, then the new one starts (the learner).

Whatever fails before the end is rolled back: the old one was never stopped, or its configuration is started again.
Replicas that were replaced before the failure are taken back too.
"""

from midflight.messages.base import Scalar

from .commands import Command, Emit, Flip, Gone, HandOver, PutBack, Spawn
from .fleet import Fleet
from .instance import UP, Instance
from .ladder import DRAIN, KILL, TERM
from .refusal import Refusal
from .restart import Exit
from .roster import Child, Stage, Swap

HAND_S = 5.0
"""Longest time for handing over the state; without it the new one begins by itself."""
MEANWHILE = 3
"""So much work of the old one without any of the new one, and that counts as broken."""
HOPELESS = 32
"""So many failures of the new one without any success, and nobody waits for the end of its probation."""
BACK_PROBATION_S = 5.0
LONGEST = 10.0
"""So many times its probation a process may be idle, when its predecessor is idle too."""


class Swapping(Fleet):
    """Swaps under way are in `Child.swap`."""

    def request_swap(
        self, slot: str, part: str, probation_s: float, reason: str, now: float
    ) -> tuple[int, list[Command]] | Refusal:
        """Replace every process of a slot by one with the configuration `part`; -> (number, commands).

        Refusal codes: `unknown`, `stopping`, `busy`, `never`.
        """
        if slot not in self.roster.specs:
            return Refusal("unknown", f"there is no slot {slot!r}; there are: {', '.join(self.roster.specs)}")
        if self.stop:
            return Refusal("stopping", f"the run is ending: {self.stop.why}")
        if self.roster.specs[slot].takeover == "never":
            return Refusal("never", f"{slot} cannot be replaced while a run goes on: end it and --resume")
        replicas = self.roster.select(slot)
        if any(child.swap for child in replicas):
            return Refusal("busy", f"{slot} is being replaced already; `midflight ctl rollback {slot}` takes it back")
        self.swaps += 1
        former, self.parts[slot] = self.parts.get(slot, ""), part
        for child in replicas:
            child.swap = Swap(self.swaps, part, former, reason, probation_s)
        if not replicas:
            self.former[slot] = former
            body: dict[str, Scalar] = {"slot": slot, "number": self.swaps, "stage": "done", "name": slot, "left": 0}
            body |= {"part": part, "former": former, "reason": reason, "why": "it has no process now"}
            body |= self._kinds(slot, part, former)
            return self.swaps, [Emit("swap", slot, body)]
        return self.swaps, self._advance(now)

    def swap_back(self, slot: str, reason: str, now: float) -> tuple[int, list[Command]] | Refusal:
        """Replace what runs in a slot by what its last swap replaced. Refusal code `nothing` when there was none."""
        if slot not in self.former:
            return Refusal("nothing", f"nothing ran in {slot} before, and nobody ruled there who still lives")
        return self.request_swap(slot, self.former[slot], BACK_PROBATION_S, reason, now)

    def leaving(self, slot: str) -> bool:
        """Whether a swap is past its probation, and what it replaced is leaving."""
        return any(child.swap and child.swap.stage == "draining" for child in self.roster.select(slot))

    def cancel_swap(self, slot: str, why: str, now: float) -> list[Command] | None:
        """Take back a swap that is not done; None when there is none."""
        for child in self.roster.select(slot):
            if child.swap and child.swap.stage not in ("waiting", "draining"):
                return [*self._roll_back(child, why, now), *self._advance(now)]
        return None

    def on_handed(self, name: str, generation: int, why: str, now: float) -> list[Command]:
        """The state was handed over, or `why` it was not, which is told and no reason to stop."""
        child = self.roster.by_name.get(name)
        new = self.registry.beside.get(name)
        if not child or not child.swap or child.swap.stage != "handing" or not new or new.generation != generation:
            return []
        note = f"without its predecessor's state: {why}" if why else ""
        if self.roster.specs[child.slot].takeover == "after" and self._of(child).live:
            out = self._enter(child, "stopping", now, note)
            child.asked = True
            return out + self._climb(child, DRAIN, now, "replaced")
        return self._flip(child, now, note)

    # what the supervisor tells

    def _begin_swaps(self, now: float) -> list[Command]:
        """One process of a slot at a time."""
        out: list[Command] = []
        for slot in self.roster.slots:
            swapping = [child for child in self.roster.select(slot) if child.swap]
            if swapping and all(child.swap and child.swap.stage == "waiting" for child in swapping):
                out += self._begin_swap(swapping[0], now)
        return out

    def _begin_swap(self, child: Child, now: float) -> list[Command]:
        swap, instance = _swap(child), self._of(child)
        restart = self.roster.specs[child.slot].takeover == "restart" or swap.back
        if restart or not instance.live:
            out = self._enter(child, "stopping", now)
            if instance.live:
                return out + self._ask(child, DRAIN, now, "replaced")
            return out + self._restarted(child, now)
        spec = self.spec_of(child.slot, swap.part)
        new = self.registry.stand_by(child.name, spec.start_timeout_s, now, swap.part)
        spawn = Spawn(child.name, new.generation, child.slot, swap.part, beside=True)
        return [*self._enter(child, "starting", now), self._event(child, new), spawn]

    def _standby_ready(self, child: Child, new: Instance, now: float) -> list[Command]:
        new.state = "ready"
        stage = child.swap.stage if child.swap else ""
        return [self._event(child, new), *(self._enter(child, "handing", now) if stage == "starting" else [])]

    def _swap_due(self, child: Child, now: float) -> list[Command]:
        """What time brings."""
        swap = child.swap
        if swap is None or self.stop:
            return []
        if swap.stage == "handing":
            return self._hand_over(child, now)
        if swap.stage == "probation":
            return self._judge(child, now)
        if swap.stage == "draining" and child.name not in self.registry.beside:
            return self._done(child, now)
        return []

    def _hand_over(self, child: Child, now: float) -> list[Command]:
        """Ask once an incarnation of the kernel, as soon as both have said hello to it."""
        swap, old, new = _swap(child), self._of(child), self.registry.beside[child.name]
        if old.state not in UP:
            return self.on_handed(child.name, new.generation, f"{old.identity} does not run", now)
        if now - swap.since > HAND_S:
            return self.on_handed(child.name, new.generation, "no answer in time", now)
        if not (old.greeted and new.greeted) or (child.name, new.generation) in self._handing:
            return []
        self._handing.add((child.name, new.generation))
        return [HandOver(child.name, old.generation, new.generation)]

    def _start_lost(self, child: Child) -> list[Command]:
        """The former kernel ended between its decision to start the new one and the start."""
        del self.registry.beside[child.name]
        if child.swap:
            child.swap.stage = "waiting"
        return []

    def _flip(self, child: Child, now: float, note: str = "") -> list[Command]:
        swap = _swap(child)
        new, old = self.registry.flip(child.name)
        swap.progress = old.progress
        old.shadow, new.shadow = bool(old.holds), old.shadow
        child.configure(swap.part, self.spec_of(child.slot, swap.part))
        if not old.live:
            del self.registry.beside[child.name]
        flip = Flip(child.name, old.generation, new.generation)
        return [flip, *self._enter(child, "probation", now, note), self._event(child), self._event(child, old)]

    def _restarted(self, child: Child, now: float) -> list[Command]:
        """The old one has left; the new one starts in its place."""
        swap = _swap(child)
        child.configure(swap.part, self.spec_of(child.slot, swap.part))
        child.due = now
        child.absolve()
        if swap.back or not child.wanted:
            return self._done(child, now)
        return self._enter(child, "probation", now)

    def _judge(self, child: Child, now: float) -> list[Command]:
        """Whether the new one has proved itself."""
        swap, new = _swap(child), self._of(child)
        if new.state not in UP:
            swap.since = now
            return []
        if not new.progress and new.failures >= HOPELESS:
            return self._roll_back(child, f"all {new.failures} that {new.identity} tried have failed", now)
        if now - swap.since < swap.probation_s:
            return []
        old = self.registry.beside.get(child.name)
        did = old.progress - swap.progress if old else 0
        idle = new.progress == 0  # it counts anew from the moment it is in force
        if idle and did >= MEANWHILE:
            why = f"{new.identity} did nothing in {now - swap.since:.1f} s, {old.identity if old else ''} did"
            return self._roll_back(child, why, now)
        if idle and now - swap.since < LONGEST * swap.probation_s:
            return []
        out = self._enter(child, "draining", now)
        return out + (self._climb(child, DRAIN, now, "replaced", old) if old else self._done(child, now))

    def _beside_ended(self, child: Child, one: Instance, ended: Exit, now: float) -> list[Command]:
        """The successor or the predecessor of a swap is gone."""
        if one.rung >= TERM and not ended.why:
            ended = Exit(ended.code, ended.signal, ended.tail, one.cause)
        one.state, one.cause, one.rung = "stopped", ended.text(), -1
        del self.registry.beside[child.name]
        out: list[Command] = [Gone(child.name, one.generation, ended.text()), self._event(child, one)]
        if child.swap and one.standby:
            return out + self._roll_back(child, f"{one.identity}: {ended.text()}", now)
        if child.swap and child.swap.stage == "draining":
            return out + self._done(child, now)
        return out

    def _swap_ended(self, child: Child, ended: Exit, now: float) -> list[Command] | None:
        """The current process is gone in the course of a swap; None when its restart policy is to decide."""
        swap, one = child.swap, self._of(child)
        if swap is None or swap.stage not in ("stopping", "probation"):
            return None
        out = self._mark(child, "stopped", ended.text())
        if swap.stage == "probation":
            return out + self._roll_back(child, f"{one.identity}: {ended.text()}", now)
        beside = self.registry.beside.get(child.name)
        return out + (self._flip(child, now) if beside else self._restarted(child, now))

    def _roll_back(self, child: Child, why: str, now: float) -> list[Command]:
        """The former configuration is in force again, for this process and for those replaced before it."""
        swap, current = _swap(child), self._of(child)
        other = self.registry.beside.pop(child.name, None)
        out: list[Command] = []
        if swap.stage in ("starting", "handing") or (swap.stage == "stopping" and other):
            out += self._end_stray(child, other, now)
        elif swap.stage == "probation" and other and other.live:
            self.registry.owned[child.name] = other
            other.shadow = current.shadow
            out += [Flip(child.name, current.generation, other.generation, swap.kept), self._event(child)]
            out += self._end_stray(child, current, now)
        else:
            child.due, child.wanted, child.failed = now, True, False
            out += self._ask(child, KILL, now, why) if swap.stage == "probation" else []
            out += [PutBack(child.slot, swap.kept)] if swap.kept else []
        if swap.stage in ("stopping", "probation"):
            child.configure(swap.former, self.spec_of(child.slot, swap.former))
            child.absolve()
        child.swap = None
        self.parts[child.slot] = swap.former
        for sibling in self.roster.select(child.slot):
            sibling.swap = None
            if sibling.part == swap.part != swap.former:
                sibling.swap = Swap(swap.number, swap.former, swap.part, why, 0.0, back=True)
        return [self._told(child, swap, "rolled_back", why), *out]

    def _end_stray(self, child: Child, one: Instance | None, now: float) -> list[Command]:
        """One that is no longer of this run."""
        if one is None or not one.live:
            return []
        gone = Gone(child.name, one.generation, "its swap was rolled back")
        return [gone, *self._stray(child.name, one.generation, now)]

    def _enter(self, child: Child, stage: Stage, now: float, note: str = "") -> list[Command]:
        swap = _swap(child)
        swap.stage, swap.since = stage, now
        return [self._told(child, swap, stage, note)]

    def _done(self, child: Child, now: float) -> list[Command]:
        swap, child.swap = _swap(child), None
        if not swap.back and not any(other.swap for other in self.roster.select(child.slot)):
            self.former[child.slot] = swap.former
        return [self._told(child, swap, "done", ""), *self._advance(now)]

    def _told(self, child: Child, swap: Swap, stage: str, why: str) -> Emit:
        left = sum(other.swap is not None for other in self.roster.select(child.slot))
        body: dict[str, Scalar] = {"slot": child.slot, "number": swap.number, "stage": stage, "name": child.name}
        body |= {"part": swap.part, "former": swap.former, "reason": swap.reason, "why": why, "left": left}
        return Emit("swap", child.slot, body | self._kinds(child.slot, swap.part, swap.former))

    def _kinds(self, slot: str, part: str, former: str) -> dict[str, Scalar]:
        """A configuration's name does not tell what it is of."""
        return {"kind": self.spec_of(slot, part).kind, "former_kind": self.spec_of(slot, former).kind}


def _swap(child: Child) -> Swap:
    assert child.swap is not None, f"{child.name} is not being replaced"
    return child.swap
