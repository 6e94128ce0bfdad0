"""What was changed in a run: by whom, when, from what to what and why; folded from its journal.

`take` each record of the journal in order; `changes` is then what happened, oldest first. Told are the values of knobs
and who holds them, replacements of what runs in a slot, and the comings and goings of controllers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from midflight.messages.base import Scalar

OPERATOR: Final = "operator"
STANDINGS: Final = {
    "controller.attached": "attached",
    "controller.detached": "detached",
    "controller.promoted": "promoted",
    "controller.rolled_back": "rolled back",
    "controller.locked": "locked",
    "controller.unlocked": "unlocked",
}
"""Topic -> what it is called here."""


@dataclass(slots=True)
class Change:
    """One change. `old` and `new` are a knob's values or owners, a slot's configurations, or who steers."""

    seq: int
    """Number of the event that tells of it."""
    ns: int
    step: int
    """Training steps done when it happened."""
    what: str
    """set, granted, released, declared, swap, what was asked of a service, or one of `STANDINGS`."""
    subject: str
    """A knob; for a swap the process; for locked and unlocked the slot; else the controller."""
    old: Scalar
    new: Scalar
    by: str
    """A process such as kl#1, operator, or kernel."""
    why: str
    version: int | None = None
    """Of the knob's value."""
    since: int | None = None
    """First training step for which a value was in force; None: not yet, or it was overtaken before."""
    stage: str = ""
    """How far a swap came: `done` and `rolled_back` are its ends."""
    kinds: tuple[str, str] = ("", "")
    """Of a swap's two configurations."""
    slots: frozenset[str] = field(default_factory=frozenset)
    """Slots it is about."""


class History:
    """The fold."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.first: int | None = None
        """Number of the first event there was; older ones are no longer kept."""
        self._seq, self._ns, self._step = 0, 0, 0
        self._values: dict[str, Scalar] = {}
        self._owners: dict[str, Scalar] = {}
        self._unapplied: dict[str, list[Change]] = {}
        self._swaps: dict[tuple[Scalar, Scalar], Change] = {}
        self._slots: dict[str, str] = {}
        """Name of a process or controller -> its slot."""
        self._concerned: dict[str, set[str]] = {}
        """knob -> the slots of those who apply it and of those who held it."""

    def take(self, record: Mapping[str, Any]) -> None:
        """Go on by one record."""
        body = record.get("body", {})
        if record["t"] == "knob" and record["kind"] == "knob.declared":
            self._declared(body)
        if record["t"] != "event":
            return
        self._seq, self._ns = record["seq"], record["ns"]
        self.first = self._seq if self.first is None else self.first
        topic = record["topic"]
        if topic == "metrics":
            self._step = max(self._step, record["step"] or 0)
        elif topic == "controller.joined":
            self._slots[_name(record["source"])] = str(body.get("slot"))
        elif record["source"] == "kernel":
            self._told(topic, body)

    def _told(self, topic: str, body: Mapping[str, Scalar]) -> None:
        match topic:
            case "service.state":
                self._slots[str(body["name"])] = str(body.get("slot", ""))
            case "knob":
                self._set(body)
            case "knob.applied":
                self._applied(body)
            case "knob.granted":
                self._granted(body)
            case "knob.released":
                owner = self._owners.pop(str(body["knob"]), None)
                self._knob("released", str(body["knob"]), owner, None, "", str(body.get("why", "")))
            case "swap":
                self._swapped(body)
            case "service.asked":
                self._asked(body)
            case _ if topic in STANDINGS:
                self._stands(STANDINGS[topic], body)

    def _declared(self, body: Mapping[str, Any]) -> None:
        """Another implementation applies the knob, or its configuration is another: its value may have moved."""
        knob, value = body["knob"], body["value"]
        self._concerned.setdefault(knob, set()).add(str(body["spec"]["applies"]))
        old = self._values.get(knob, value)
        self._values[knob] = value
        if old != value:
            self._knob("declared", knob, old, value, "kernel", "", version=body["version"])

    def _set(self, body: Mapping[str, Scalar]) -> None:
        knob, by = str(body["knob"]), str(body.get("author"))
        old = body["old"] if "old" in body else self._values.get(knob)
        self._values[knob] = body["value"]
        why, limit = str(body.get("reason", "")), body.get("for_steps")
        why = f"{why} (for {limit} steps)".lstrip() if limit else why
        change = self._knob("set", knob, old, body["value"], by, why, version=int(body["version"] or 0))
        self._unapplied.setdefault(knob, []).append(change)

    def _applied(self, body: Mapping[str, Scalar]) -> None:
        for change in self._unapplied.pop(str(body["knob"]), []):
            if change.version == body["version"]:
                change.since = int(body["step"] or 0)
            elif (change.version or 0) > int(body["version"] or 0):
                self._unapplied.setdefault(change.subject, []).append(change)

    def _granted(self, body: Mapping[str, Scalar]) -> None:
        knob, owner = str(body["knob"]), body["owner"]
        former, self._owners[knob] = self._owners.get(knob), owner
        self._concerned.setdefault(knob, set()).update(self._slot(str(owner)))
        self._knob("granted", knob, former, owner, "", "")

    def _knob(
        self, what: str, knob: str, old: Scalar, new: Scalar, by: str, why: str, version: int | None = None
    ) -> Change:
        slots = frozenset({*self._concerned.get(knob, ()), *self._slot(by)})
        change = Change(self._seq, self._ns, self._step, what, knob, old, new, by, why, version, slots=slots)
        self.changes.append(change)
        return change

    def _asked(self, body: Mapping[str, Scalar]) -> None:
        name, why = str(body["name"]), str(body.get("reason", ""))
        slots = frozenset(self._slot(name)) or frozenset({name})
        new, by, verb = body.get("replicas"), str(body["by"]), str(body["verb"])
        self.changes.append(Change(self._seq, self._ns, self._step, verb, name, None, new, by, why, slots=slots))

    def _swapped(self, body: Mapping[str, Scalar]) -> None:
        key = body["number"], body["name"]
        change = self._swaps.get(key)
        if change is None:
            slot, name = str(body["slot"]), str(body["name"])
            old, new, why = body.get("former"), body.get("part"), str(body.get("reason", ""))
            change = Change(self._seq, self._ns, self._step, "swap", name, old, new, OPERATOR, why)
            change.slots = frozenset({slot})
            change.kinds = str(body.get("former_kind", "")), str(body.get("kind", ""))
            self._swaps[key] = change
            self.changes.append(change)
        change.stage = str(body["stage"])
        if body.get("why"):
            change.why = f"{change.why}; {body['why']}".removeprefix("; ")

    def _stands(self, what: str, body: Mapping[str, Scalar]) -> None:
        slot, name = str(body.get("slot")), str(body.get("name"))
        if what == "attached":
            self._slots[name] = slot
        by = "" if what in ("attached", "detached") else OPERATOR
        old, new, why = body.get("from") or None, body.get("to") or None, str(body.get("reason") or "")
        subject = slot if what in ("locked", "unlocked") else name
        change = Change(self._seq, self._ns, self._step, what, subject, old, new, by, why, slots=frozenset({slot}))
        self.changes.append(change)

    def _slot(self, identity: str) -> set[str]:
        """The slot of a process, if it is one that is known."""
        slot = self._slots.get(_name(identity))
        return {slot} if slot else set()


def _name(identity: str) -> str:
    return identity.partition("#")[0]
