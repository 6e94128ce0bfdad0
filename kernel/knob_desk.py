"""The kernel's counter for knobs: requests in, the table's verdict out, values on to the services that apply them."""

from collections.abc import Iterable, Iterator
from typing import Any

from midflight.messages.control import Done, Refused
from midflight.messages.knobs import (
    KnobAcquire,
    KnobApplied,
    KnobApply,
    KnobDeclaration,
    KnobGet,
    KnobGranted,
    KnobOk,
    KnobRelease,
    Knobs,
    KnobSet,
    KnobStatus,
)

from .knobs import Events, Knob, KnobEvent, KnobSpec, KnobTable
from .node import Letter
from .refusal import Refusal
from .stream import Record, Stream

OPERATOR = "operator"
"""Author of what people set from a command line."""


class KnobDesk:
    """Every change is journaled before it is answered."""

    def __init__(self, stream: Stream, journal: Record) -> None:
        self.table = KnobTable()
        self.stream, self.journal = stream, journal

    def replay(self, record: dict[str, Any]) -> None:
        """Take up a change that a former kernel journaled."""
        self.table.replay(KnobEvent(record["kind"], record["body"]))

    def declare(self, slot: str, declarations: Iterable[KnobDeclaration]) -> dict[str, Knob]:
        """A service says hello with the knobs it applies; -> them as they stand.

        Raises ValueError, with nothing declared, for a declaration that makes no sense.
        """
        known: dict[str, Knob] = {}
        for spec in [_spec(slot, one) for one in declarations]:
            events = self.table.declare(spec)
            if not isinstance(events, Refusal):
                self._keep(events)
                known[spec.name] = self.table.knobs[spec.name]
        return known

    def acquire(self, message: KnobAcquire, letter: Letter, now: float) -> None:
        """A controller asks for a knob."""
        answer = self.table.acquire(message.knob, letter.sender, now)
        if isinstance(answer, Refusal):
            letter.reply(_refused(answer))
            return
        self._keep(answer.events)
        knob = self.table.knobs[message.knob]
        letter.reply(KnobGranted(knob=message.knob, epoch=answer.epoch, value=knob.value, version=knob.version))

    def release(self, message: KnobRelease, letter: Letter) -> None:
        """An owner gives a knob back."""
        owner = letter.sender if message.epoch is not None else OPERATOR
        answer = self.table.release(message.knob, owner, message.epoch)
        if isinstance(answer, Refusal):
            letter.reply(_refused(answer))
        else:
            self._keep(answer)
            letter.reply(Done())

    def set(self, message: KnobSet, letter: Letter, now: float) -> KnobApply | None:
        """A new value; -> what the applying service must be told."""
        author = letter.sender if message.epoch is not None else OPERATOR
        answer = self.table.set(
            message.knob,
            message.value,
            author,
            now,
            epoch=message.epoch,
            reason=message.reason,
            if_version=message.if_version,
            take=message.take,
        )
        if isinstance(answer, Refusal):
            letter.reply(_refused(answer))
            return None
        self._keep(answer.events)
        letter.reply(KnobOk(knob=message.knob, value=answer.new, version=answer.version))
        return KnobApply(knob=message.knob, value=answer.new, version=answer.version)

    def applied(self, message: KnobApplied) -> None:
        """The applying service says since when."""
        answer = self.table.applied(message.knob, message.version, message.step)
        if not isinstance(answer, Refusal):
            self._keep(answer)

    def gone(self, owner: str) -> None:
        """An owner is no more: its knobs fall back."""
        self._keep(self.table.owner_gone(owner))

    def expire(self, now: float) -> None:
        """End the holds of owners that fell silent."""
        self._keep(self.table.expire(now))

    def owners(self) -> frozenset[str]:
        """Every service or client that holds a knob or waits for one it was taken from; not the operator."""
        knobs = self.table.knobs.values()
        named = {str(knob.owner) for knob in knobs if knob.owner} | {entry[0] for k in knobs for entry in k.former}
        return frozenset(named - {OPERATOR})

    def forget_owners(self) -> None:
        """The former run's owners are all gone."""
        for owner in self.owners():
            self.gone(owner)

    def unapplied(self) -> Iterator[tuple[str, KnobApply]]:
        """(slot, value) of every change that its service has not confirmed."""
        for name, knob in self.table.knobs.items():
            if knob.version > (knob.applied_version or 0):
                yield knob.spec.applies, KnobApply(knob=name, value=knob.value, version=knob.version)

    def show(self, message: KnobGet, letter: Letter) -> None:
        """The table, for people."""
        shown = [_status(knob) for name, knob in self.table.knobs.items() if name.startswith(message.prefix)]
        letter.reply(Knobs(knobs=shown))

    def _keep(self, events: Events) -> None:
        for event in events:
            self.journal.append({"t": "knob", "kind": event.kind, "body": event.body})
            if event.kind != "knob.declared":
                topic = "knob" if event.kind == "knob.set" else event.kind
                self.stream.emit("kernel", topic, event.flat())
        self.stream.flush()


def _spec(slot: str, one: KnobDeclaration) -> KnobSpec:
    return KnobSpec(
        name=one.name,
        kind=one.kind,
        default=one.default,
        unit=one.unit,
        low=one.low,
        high=one.high,
        choices=tuple(one.choices),
        live=one.live,
        applies=slot,
        description=one.description,
    )


def _refused(refusal: Refusal) -> Refused:
    return Refused(code=refusal.code, why=refusal.why)


def _status(knob: Knob) -> KnobStatus:
    spec = knob.spec
    declaration = KnobDeclaration(
        name=spec.name,
        kind=spec.kind,
        unit=spec.unit,
        default=spec.default,
        low=spec.low,
        high=spec.high,
        choices=list(spec.choices),
        live=spec.live,
        description=spec.description,
    )
    return KnobStatus(
        declaration=declaration,
        applies=spec.applies,
        value=knob.value,
        version=knob.version,
        owner=knob.owner,
        epoch=knob.epoch,
        applied_step=knob.applied_step,
        author=knob.author,
        reason=knob.reason,
    )
