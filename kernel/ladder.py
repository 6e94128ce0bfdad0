"""The stop ladder of one service: drain message, then SIGTERM, then SIGKILL, each with its deadline.

A declared phase (an optimizer step, a checkpoint) stretches the drain to the phase's end and `shutdown_s` beyond it,
because the service reads the drain message only then; `drain_max_s` bounds the whole.
"""

from dataclasses import dataclass
from signal import SIGKILL, SIGTERM

from .commands import Command, Kill, SendDrain
from .instance import UP, Instance
from .roster import ChildSpec

DRAIN, TERM, KILL = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Ladder:
    """The times of the ladder, seconds; `shutdown_s` comes with each slot."""

    term_s: float = 5.0
    kill_s: float = 5.0
    """Pause between repeated SIGKILLs; after two of them the process counts as lost when a run ends."""
    drain_max_s: float = 300.0

    def climb(self, spec: ChildSpec, instance: Instance, rung: int, now: float, why: str) -> list[Command]:
        """Go to `rung` unless already there or beyond. A service that is not up yet cannot drain: SIGTERM."""
        if instance.rung >= rung:
            return []
        if rung == DRAIN and instance.state not in UP:
            rung = TERM
        instance.rung, instance.rung_since = rung, now
        instance.cause = why
        if rung == DRAIN:
            instance.state = "draining"
            instance.deadline = now + spec.shutdown_s
            self.stretch(spec, instance, now)
            return [SendDrain(instance.name, instance.generation, spec.shutdown_s, why)]
        instance.state = "stopping"
        instance.deadline = now + (self.term_s if rung == TERM else self.kill_s)
        return [Kill(instance.name, instance.generation, SIGTERM if rung == TERM else SIGKILL, why)]

    def due(self, spec: ChildSpec, instance: Instance, now: float) -> list[Command]:
        """The next step when the current one's deadline has passed; SIGKILL is repeated."""
        if instance.rung < DRAIN or now < instance.deadline:
            return []
        if instance.rung == KILL:
            instance.deadline = now + self.kill_s
            return [Kill(instance.name, instance.generation, SIGKILL, instance.cause)]
        step = f"did not drain in {now - instance.rung_since:.1f} s" if instance.rung == DRAIN else "ignored SIGTERM"
        return self.climb(spec, instance, instance.rung + 1, now, f"{instance.cause}; {step}")

    def stretch(self, spec: ChildSpec, instance: Instance, now: float, phase_ended: bool = False) -> None:
        """Let the drain wait for the phase in progress, or give it `shutdown_s` after one that ended."""
        if instance.state != "draining":
            return
        wish = instance.deadline
        if instance.phase:
            wish = instance.phase_deadline + spec.shutdown_s
        elif phase_ended:
            wish = now + spec.shutdown_s
        limit = instance.rung_since + max(self.drain_max_s, spec.shutdown_s)
        instance.deadline = max(instance.deadline, min(wish, limit))

    def lost(self, instance: Instance, now: float) -> bool:
        """Whether SIGKILL has had its time and no exit was reported (uninterruptible sleep)."""
        return instance.rung == KILL and now - instance.rung_since > 2 * self.kill_s
