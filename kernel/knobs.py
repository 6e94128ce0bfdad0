"""The knob table: every steerable quantity of a run, its value, and who may steer it. Pure and event-sourced.

A knob has at most one owner, who holds it under an epoch; every change of ownership raises the epoch, so what a former
owner still sends is recognised. Each accepted value raises the version. A request either has no effect and returns a
`Refusal`, or returns the `KnobEvent`s that record it; `replay` of these events in order, on top of a `snapshot` or of
nothing, gives the same table again. Only the expiry of holds is no part of the state: after a restore every owner has
its whole `ttl_s` to renew.

Refusal codes: unknown, type, range, live, owner, epoch, version.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from .knobspec import KnobSpec, Value
from .knobstate import Events, Fallback, Knob, KnobEvent, KnobState
from .refusal import Refusal

__all__ = ["Acquired", "Change", "Events", "Fallback", "Knob", "KnobEvent", "KnobSpec", "KnobTable", "Value"]


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

    def __init__(self) -> None:
        super().__init__()
        self._renewed: dict[str, float] = {}

    # Requests

    def declare(self, spec: KnobSpec) -> Events | Refusal:
        """The applying service says what the knob is. A known knob keeps its value if the new range allows it."""
        knob = self.knobs.get(spec.name)
        if knob and knob.spec.applies != spec.applies:
            return Refusal("owner", f"{spec.name} is applied by {knob.spec.applies} already, not by {spec.applies}")
        if knob and knob.spec == spec:
            return ()
        kept = spec.check(knob.value) if knob else spec.default
        value = spec.default if isinstance(kept, Refusal) else kept
        moved = knob is not None and (type(value), value) != (type(knob.value), knob.value)
        version = (knob.version if knob else 0) + moved
        return self._record("knob.declared", spec.name, spec=spec.dump(), value=value, version=version)

    def acquire(
        self,
        name: str,
        owner: str,
        now: float,
        *,
        fallback: Fallback | None = None,
        ttl_s: float | None = None,
        take: bool = False,
    ) -> Acquired | Refusal:
        """Hold a knob. Repeating it keeps the epoch. `take` is for people: the former owner waits its turn.

        `fallback` None means `former` for a knob that was taken and `hold` for a free one.
        """
        knob = self._find(name)
        if isinstance(knob, Refusal):
            return knob
        if knob.owner == owner:
            self.renew(owner, now)
            return Acquired(knob.epoch, ())
        if knob.owner and not take:
            return _held(name, knob)
        former = [entry for entry in knob.former if entry[0] != owner]
        if knob.owner:
            former.append([knob.owner, knob.fallback, knob.ttl_s])
        chosen = fallback or ("former" if knob.owner else "hold")
        self._renewed[owner] = now
        events = self._grant(name, owner, knob.epoch + 1, chosen, ttl_s, former)
        return Acquired(knob.epoch, events)

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
        now: float,
        *,
        epoch: int | None = None,
        reason: str = "",
        if_version: int | None = None,
        take: bool = False,
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
        if take and epoch is None and knob.owner != author:
            acquired = self.acquire(name, author, now, take=True)
            events = acquired.events if isinstance(acquired, Acquired) else ()
        old = knob.value
        events += self._set(name, checked, author, reason)
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
        return self._record("knob.applied", name, version=version, step=step)

    # The life of owners

    def owner_gone(self, owner: str, why: str = "is gone") -> Events:
        """Free everything the owner holds or waits for."""
        events: Events = ()
        for name, knob in self.knobs.items():
            if any(entry[0] == owner for entry in knob.former):
                former = [entry for entry in knob.former if entry[0] != owner]
                events += self._grant(name, str(knob.owner), knob.epoch, knob.fallback, knob.ttl_s, former)
            if knob.owner == owner:
                events += self._let_go(name, f"{owner} {why}")
        self._renewed.pop(owner, None)
        return events

    def renew(self, owner: str, now: float) -> None:
        """A sign of life of an owner whose hold expires."""
        self._renewed[owner] = now

    def expire(self, now: float) -> Events:
        """End the holds of owners that have been silent for their `ttl_s`. Call it regularly."""
        due = []
        for owner, ttl_s in {(k.owner, k.ttl_s) for k in self.knobs.values() if k.owner and k.ttl_s is not None}:
            if now - self._renewed.setdefault(owner, now) > ttl_s:
                due.append(owner)
        return tuple(event for owner in sorted(set(due)) for event in self.owner_gone(owner, "fell silent"))

    def time_back(self, gap: float, now: float) -> None:
        """The kernel was stopped for `gap` seconds: nobody's hold expires for that."""
        self._renewed = {owner: min(at + gap, now) for owner, at in self._renewed.items()}

    def _grant(
        self, name: str, owner: str, epoch: int, fallback: Fallback, ttl_s: float | None, former: Iterable[list[Any]]
    ) -> Events:
        body = {"owner": owner, "epoch": epoch, "fallback": fallback, "ttl_s": ttl_s, "former": list(former)}
        return self._record("knob.granted", name, **body)

    def _set(self, name: str, value: Value, author: str, reason: str) -> Events:
        version = self.knobs[name].version + 1
        return self._record("knob.set", name, value=value, version=version, author=author, reason=reason)

    def _let_go(self, name: str, why: str) -> Events:
        knob = self.knobs[name]
        fallback, former = knob.fallback, knob.former
        if fallback == "former" and former:
            owner, its_fallback, ttl_s = former[-1]
            return self._grant(name, owner, knob.epoch + 1, its_fallback, ttl_s, former[:-1])
        events = self._record("knob.released", name, epoch=knob.epoch + 1, why=why)
        if fallback == "default":
            events += self._set(name, knob.spec.default, "kernel", f"{why}: back to the default")
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
