"""Who steers, who would, and who did: standings of controllers, and how power passes between them.

Power is ownership of knobs, which the knob table keeps; what is here moves it, several knobs in one step, and says so.
"""

from collections.abc import Iterator

from midflight.messages.base import Scalar
from midflight.messages.live import Controllers, ControllerStatus, Standing

from .instance import Instance
from .knob_desk import OPERATOR, KnobDesk
from .refusal import Refusal
from .registry import Registry
from .stream import Stream

ORDER: tuple[Standing, ...] = ("active", "previous", "shadow", "standby")


class ControllerDesk:
    """Promote, roll back, lock. Changes the `shadow` mark of instances, which their caller journals."""

    def __init__(self, registry: Registry, desk: KnobDesk, stream: Stream) -> None:
        self.registry, self.desk, self.stream = registry, desk, stream

    def all(self) -> Iterator[Instance]:
        """Every living controller, those of the topology first."""
        for instance in (*self.registry.all_owned(), *self.registry.attached.values()):
            if instance.holds and instance.live:
                yield instance

    def standing(self, one: Instance) -> Standing:
        """Whether it steers."""
        knobs = [self.desk.table.knobs[name] for name in one.holds if name in self.desk.table.knobs]
        if one.standby:
            return "standby"
        if any(knob.owner == one.identity for knob in knobs):
            return "active"
        if any(one.identity == entry[0] for knob in knobs for entry in knob.former):
            return "previous"
        return "shadow" if one.shadow or any(knob.owner for knob in knobs) else "active"

    def promote(self, name: str, reason: str) -> Refusal | None:
        """All knobs that it would steer are its own, in one step; the former owners go on without power."""
        one = self._named(name)
        if isinstance(one, Refusal):
            return one
        if self._is_locked(one.slot):
            return Refusal("locked", f"{one.slot} is locked by hand; `midflight ctl unlock {one.slot}` first")
        former = self._owners(one)
        if former == [one.identity]:
            return Refusal("active", f"{name} steers already")
        if refusal := self.desk.hand_over(one.holds, one.identity, one.fallback):
            return refusal
        self._tell("controller.promoted", one, former, reason)
        return None

    def rollback(self, slot: str, reason: str) -> Refusal | None:
        """Undo the last promotion in a slot: whoever ruled before has its knobs again, with its own parameters."""
        if self._is_locked(slot):
            return Refusal("locked", f"{slot} is locked by hand; `midflight ctl unlock {slot}` first")
        table = self.desk.table.knobs
        for one in self.all():
            waiting = [name for name in self._owned(one) if table[name].former] if one.slot == slot else []
            if waiting:
                self.desk.give_back(waiting, one.identity, f"rolled back: {reason}" if reason else "rolled back")
                one.shadow = True
                to = sorted({str(table[name].owner) for name in waiting})
                self._told("controller.rolled_back", slot, one.name, one.identity, ",".join(to), reason)
                return None
        return Refusal("nothing", f"nobody ruled {slot} before who still lives")

    def lock(self, slot: str, reason: str) -> Refusal | None:
        """A person holds the slot's knobs, at the values they have."""
        names = self._knobs_of(slot)
        if not names:
            return Refusal("unknown", f"no controller steers in {slot!r}")
        self.desk.hand_over(names, OPERATOR)
        self.desk.make_lasting(names, OPERATOR, reason or "locked")
        self._told("controller.locked", slot, OPERATOR, "", OPERATOR, reason)
        return None

    def unlock(self, slot: str, reason: str) -> Refusal | None:
        """Whoever ruled before has them again."""
        if not self._is_locked(slot):
            return Refusal("unknown", f"{slot!r} is not locked")
        self.desk.give_back(self._knobs_of(slot), OPERATOR, "unlocked")
        self._told("controller.unlocked", slot, OPERATOR, OPERATOR, "", reason)
        return None

    def locked(self) -> list[str]:
        """Slots all of whose knobs a person holds."""
        return [slot for slot in dict.fromkeys(one.slot for one in self.all()) if self._is_locked(slot)]

    def show(self) -> Controllers:
        """By slot, the active one first."""
        listed = sorted(self.all(), key=lambda one: (one.slot, ORDER.index(self.standing(one)), one.name))
        return Controllers(controllers=[self._status(one) for one in listed], locked=self.locked())

    def orphans(self) -> None:
        """The topology's own controller takes what nobody steers, whatever it was before."""
        table = self.desk.table.knobs
        for one in self.registry.owned.values():
            knobs = [table[name] for name in one.holds if name in table]
            if one.live and one.shadow and knobs and all(knob.owner is None for knob in knobs):
                one.shadow = False

    def missing(self, owner: str) -> None:
        """One that held knobs did not come back to this incarnation of the kernel."""
        name = owner.partition("#")[0]
        self._told("controller.detached", "", name, owner, "", "it did not come back after the kernel's restart")

    def announce(self, one: Instance, reason: str) -> None:
        """An attached controller has come."""
        self._told("controller.attached", one.slot, one.name, "", one.identity, reason or "without power yet")

    def departed(self, one: Instance, why: str) -> None:
        """An attached controller has gone; its knobs have fallen back."""
        self._told("controller.detached", one.slot, one.name, one.identity, "", why)

    def _named(self, name: str) -> Instance | Refusal:
        for one in self.all():
            if name in (one.name, one.identity) and not one.standby:
                return one
        known = ", ".join(sorted({one.name for one in self.all()})) or "none"
        return Refusal("unknown", f"there is no controller {name!r}; there are: {known}")

    def _owned(self, one: Instance) -> list[str]:
        table = self.desk.table.knobs
        return [name for name in one.holds if name in table and table[name].owner == one.identity]

    def _is_locked(self, slot: str) -> bool:
        return {self.desk.table.knobs[name].owner for name in self._knobs_of(slot)} == {OPERATOR}

    def _owners(self, one: Instance) -> list[str]:
        table = self.desk.table.knobs
        return sorted({str(table[name].owner) for name in one.holds if name in table and table[name].owner})

    def _knobs_of(self, slot: str) -> list[str]:
        wanted = {name: None for one in self.all() if one.slot == slot for name in one.holds}
        return [name for name in wanted if name in self.desk.table.knobs]

    def _status(self, one: Instance) -> ControllerStatus:
        return ControllerStatus(
            name=one.name,
            generation=one.generation,
            slot=one.slot,
            standing=self.standing(one),
            kind=one.kind,
            holds=list(one.holds),
            attached=not one.owned,
            decisions=one.progress,
            stats=one.stats,
        )

    def _tell(self, topic: str, one: Instance, former: list[str], reason: str) -> None:
        one.shadow = False
        for owner in former:
            name, _, generation = owner.partition("#")
            loser = self.registry.find(name, int(generation)) if generation else None
            if loser and loser is not one:
                loser.shadow = True
        self._told(topic, one.slot, one.name, ",".join(former), one.identity, reason)

    def _told(self, topic: str, slot: str, name: str, was: str, to: str, reason: str) -> None:
        body: dict[str, Scalar] = {"slot": slot, "name": name, "from": was, "to": to, "reason": reason}
        self.stream.emit("kernel", topic, body)
        self.stream.flush()
