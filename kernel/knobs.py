"""The knob table: every steerable quantity of a run, its value, and who may steer it. Pure and event-sourced.

A knob has at most one owner, who holds it under an epoch; every change of ownership raises the epoch, so what a former
owner still sends is recognised. Each accepted value raises the version. A request either has no effect and returns a
`Refusal`, or returns the `KnobEvent`s that record it; `replay` of these events in order, on top of a `snapshot` or of
nothing, gives the same table again.

Refusal codes: unknown, type, range, live, owner, epoch, version.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from midflight.messages.knobs import Fallback

from .knobspec import KnobSpec, Value
from .knobstate import Events, Knob, KnobEvent, KnobState
from .refusal import Refusal

__all__ = ["Acquired", "Change", "Events", "Knob", "KnobEvent", "KnobSpec", "KnobTable", "Value"]

KERNEL = "kernel"
"""Author of the values that nobody asked for: a fallback, the end of a limited change, one that could not be used."""


@dataclass(frozen=True, slots=True)
class Acquired:
    """The knob is held under `epoch`."""

    epoch: int
    events: Events


@dataclass(frozen=True, slots=True)
class Change:
    """The value went from `old` to `new` as `version`; the applying service is to be told."""

    version: int
    old: Value
    new: Value
    events: Events


class KnobTable(KnobState):
    """All knobs of a run and the rules of steering them."""

    step = 0
    """Training steps that are done, as far as is known."""

    # Declarations

    def declare(self, spec: KnobSpec, *, afresh: bool = False) -> Events | Refusal:
        """The applying service says what the knob is. A known knob keeps its value if the new range allows it.

        Unless nobody holds it and the default is another one than before: then the configuration has been changed.
        `afresh`: another implementation has taken over, and begins with its own default in any case.
        """
        knob = self.knobs.get(spec.name)
        if knob and knob.spec.applies != spec.applies:
            return Refusal("owner", f"{spec.name} is applied by {knob.spec.applies} already, not by {spec.applies}")
        if knob and knob.spec == spec and not afresh:
            return ()
        afresh = afresh or (knob is not None and knob.owner is None and knob.spec.default != spec.default)
        kept = spec.check(knob.value) if knob and not afresh else spec.default
        value = spec.default if isinstance(kept, Refusal) else kept
        moved = knob is not None and (afresh or (type(value), value) != (type(knob.value), knob.value))
        former = knob.version if knob else self.retired[spec.name][0] + 1 if spec.name in self.retired else 0
        version = former + moved
        return self._record("knob.declared", spec.name, spec=spec.dump(), value=value, version=version)

    def undeclare(self, applies: str, keep: Iterable[str] = ()) -> Events:
        """Whoever applied these knobs is gone for good, or applies only those of `keep` from now on."""
        gone = [name for name, knob in self.knobs.items() if knob.spec.applies == applies and name not in set(keep)]
        return tuple(event for name in gone for event in self._record("knob.undeclared", name))

    # Requests

    def acquire(
        self, name: str, owner: str, *, fallback: Fallback | None = None, take: bool = False
    ) -> Acquired | Refusal:
        """Hold a knob. Repeating it keeps the epoch. `take`: the former owner waits its turn.

        `fallback` None means `former` for a knob that was taken and `hold` for a free one.
        """
        knob = self._find(name)
        if isinstance(knob, Refusal):
            return knob
        if knob.owner == owner:
            return Acquired(knob.epoch, ())
        if knob.owner and not take:
            return _held(name, knob)
        former = [entry for entry in knob.former if entry[0] != owner]
        if knob.owner:
            former.append([knob.owner, knob.fallback])
        chosen = fallback or ("former" if former else "hold")
        return Acquired(knob.epoch + 1, self._grant(name, owner, knob.epoch + 1, chosen, former))

    def queue(self, name: str, owner: str) -> Events:
        """Whoever asked in vain has it when all others have let go."""
        knob = self.knobs[name]
        if knob.owner in (None, owner) or any(entry[0] == owner for entry in knob.former):
            return ()
        return self._record("knob.queued", name, former=[[owner, "hold"], *knob.former])

    def release(self, name: str, owner: str, epoch: int | None, why: str = "released") -> Events | Refusal:
        """The owner gives the knob back and its fallback takes place. People may leave the epoch out."""
        knob = self._find(name)
        if isinstance(knob, Refusal):
            return knob
        if knob.owner != owner:
            return _held(name, knob)
        if epoch is not None and epoch != knob.epoch:
            return _old_epoch(name, knob, epoch)
        return self._let_go(name, f"{owner} {why}")

    def set(
        self,
        name: str,
        value: object,
        author: str,
        *,
        epoch: int | None = None,
        reason: str = "",
        if_version: int | None = None,
        take: bool = False,
        for_steps: int | None = None,
    ) -> Change | Refusal:
        """A new value, from the owner with its epoch, or from a person without one.

        A person may set a free knob, or a held one with `take`, which also makes the person its owner.
        """
        knob = self._find(name)
        if isinstance(knob, Refusal):
            return knob
        refusal = self._may_set(name, knob, author, epoch, take) or _version_differs(name, knob, if_version)
        if refusal:
            return refusal
        checked = knob.spec.check(value)
        if isinstance(checked, Refusal):
            return checked
        events: Events = ()
        taken = take and epoch is None and knob.owner != author
        if taken:
            acquired = self.acquire(name, author, take=True)
            events = acquired.events if isinstance(acquired, Acquired) else ()
        old = knob.value
        events += self._set(name, checked, author, reason, for_steps=for_steps, taken=taken)
        return Change(knob.version, old, checked, events)

    def applied(self, name: str, version: int, step: int) -> Events | Refusal:
        """The applying service has put `version` into force at `step`. A repeat or an older version is no event."""
        knob = self._find(name)
        if isinstance(knob, Refusal):
            return knob
        if version > knob.version:
            return Refusal("version", f"{name} has no version {version}; the newest is {knob.version}")
        if knob.applied_version is not None and version <= knob.applied_version:
            return ()
        return self._record("knob.applied", name, version=version, step=step or self.step + bool(self.step))

    def unusable(self, name: str, version: int, why: str) -> Events:
        """The applying service cannot use `version`: the value before it is back, once."""
        knob = self.knobs.get(name)
        if knob is None or version != knob.version or knob.author == KERNEL:
            return ()
        return self._set(name, _before(knob), KERNEL, f"{knob.value!r} cannot be used: {why}"[:500])

    def on_step(self, step: int) -> Events:
        """Training step `step` is done: end the changes that were made for a while."""
        events: Events = ()
        self.step = max(self.step, step)
        for name, knob in self.knobs.items():
            if knob.until_step is None or step + 1 < knob.until_step:
                continue
            why = f"{knob.for_steps} steps are over"
            taken = knob.taken
            events += self._set(name, _before(knob), KERNEL, why)
            if taken:
                events += self._let_go(name, why)
        return events

    # The life of owners

    def owner_gone(self, owner: str, why: str = "is gone") -> Events:
        """Free everything the owner holds or waits for."""
        events: Events = ()
        for name, knob in self.knobs.items():
            if any(entry[0] == owner for entry in knob.former):
                former = [entry for entry in knob.former if entry[0] != owner]
                events += self._record("knob.queued", name, former=former)
            if knob.owner == owner:
                events += self._let_go(name, f"{owner} {why}")
        return events

    def succeed(self, old: str, new: str) -> Events:
        """Whoever takes the place of another waits in its place too."""
        events: Events = ()
        for name, knob in self.knobs.items():
            if any(entry[0] == old for entry in knob.former) and knob.owner != new:
                others = [entry for entry in knob.former if entry[0] != new]
                events += self._record("knob.queued", name, former=[[new if o == old else o, f] for o, f in others])
        return events

    def held_by(self, owner: str) -> list[str]:
        """The knobs it owns."""
        return [name for name, knob in self.knobs.items() if knob.owner == owner]

    def _grant(self, name: str, owner: str, epoch: int, fallback: Fallback, former: Iterable[list[str]]) -> Events:
        return self._record(
            "knob.granted", name, owner=owner, epoch=epoch, fallback=fallback, former=[list(f) for f in former]
        )

    def _set(
        self, name: str, value: Value, author: str, reason: str, *, for_steps: int | None = None, taken: bool = False
    ) -> Events:
        knob = self.knobs[name]
        limit = {} if for_steps is None else {"for_steps": for_steps, "taken": taken}
        body = {"value": value, "old": knob.value, "version": knob.version + 1, "author": author, "reason": reason}
        return self._record("knob.set", name, **body, **limit)

    def _let_go(self, name: str, why: str) -> Events:
        knob = self.knobs[name]
        fallback, former = knob.fallback, knob.former
        if fallback == "former" and former:
            owner, its_fallback = former[-1]
            return self._grant(name, owner, knob.epoch + 1, its_fallback, former[:-1])
        events = self._record("knob.released", name, epoch=knob.epoch + 1, why=why)
        if fallback == "default":
            events += self._set(name, knob.spec.default, KERNEL, f"{why}: back to the default")
        return events

    def _find(self, name: str) -> Knob | Refusal:
        if name in self.knobs:
            return self.knobs[name]
        near = get_close_matches(name, self.knobs, 1)
        return Refusal("unknown", f"unknown knob {name!r}" + (f" - did you mean {near[0]!r}?" if near else ""))

    def _may_set(self, name: str, knob: Knob, author: str, epoch: int | None, take: bool) -> Refusal | None:
        if not knob.spec.live:
            return Refusal("live", f"{name} can only be set before the run starts, in its topology")
        if epoch is None:
            return _held(name, knob) if knob.owner not in (None, author) and not take else None
        if knob.owner != author:
            return _held(name, knob)
        return None if epoch == knob.epoch else _old_epoch(name, knob, epoch)


def _before(knob: Knob) -> Value:
    """The value before the last change, as far as the range of today allows it."""
    checked = knob.spec.check(knob.previous)
    return knob.spec.default if isinstance(checked, Refusal) else checked


def _held(name: str, knob: Knob) -> Refusal:
    if knob.owner is None:
        return Refusal("owner", f"{name} is held by nobody: acquire it first")
    return Refusal("owner", f"{name} is held by {knob.owner} (epoch {knob.epoch})")


def _old_epoch(name: str, knob: Knob, epoch: int) -> Refusal:
    return Refusal("epoch", f"epoch {epoch} of {name} is over; {knob.owner} holds it under epoch {knob.epoch}")


def _version_differs(name: str, knob: Knob, if_version: int | None) -> Refusal | None:
    if if_version is None or if_version == knob.version:
        return None
    text = f"{name} is at version {knob.version}, not {if_version}: {knob.value!r}, set by {knob.author or 'default'}"
    return Refusal("version", text)
