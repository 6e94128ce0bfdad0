"""The kernel's counter for knobs: requests in, the table's verdict out, values on to the services that apply them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from midflight.messages.control import Done, Refused
from midflight.messages.knobs import (
    Fallback,
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

from .instance import Instance
from .knobs import KERNEL, Events, Knob, KnobEvent, KnobSpec, KnobTable
from .node import Letter
from .refusal import Refusal
from .stream import Record, Stream

OPERATOR = "operator"
"""Author of what people set from a command line."""
QUIET = frozenset({"knob.declared", "knob.undeclared", "knob.queued"})
"""Facts that are journaled and not told."""


class KnobDesk:
    """Every change is journaled before it is answered. `granted(owner, message)` is called for each new owner."""

    def __init__(self, stream: Stream, journal: Record, granted: Callable[[str, KnobGranted], None]) -> None:
        self.table = KnobTable()
        self.stream, self.journal = stream, journal
        self._granted = granted
        self._confirmed: dict[tuple[str, int], dict[str, int]] = {}
        """(knob, version) -> the processes that use it, and since which step."""

    def replay(self, record: dict[str, Any]) -> None:
        """Take up a change that a former kernel journaled."""
        self.table.replay(KnobEvent(record["kind"], record["body"]))

    # those who apply

    def declare(self, applies: str, declarations: Sequence[KnobDeclaration]) -> dict[str, Knob]:
        """A service says which knobs it applies; -> them as they stand. Those it applied before and no longer are gone.

        Raises ValueError, with nothing declared, for a declaration that makes no sense.
        """
        events = self._declared(applies, declarations)
        self.keep(events)
        return {one.name: self.table.knobs[one.name] for one in declarations if self._applies(one.name, applies)}

    def applied(self, message: KnobApplied, sender: str, expected: Iterable[str]) -> None:
        """One of the processes that apply it says since when; in force once all the `expected` ones have."""
        if message.refused is not None:
            self.keep(self.table.unusable(message.knob, message.version, message.refused))
        key = (message.knob, message.version)
        confirmed = self._confirmed.setdefault(key, {})
        confirmed[sender] = message.step
        if confirmed.keys() >= set(expected):
            del self._confirmed[key]
            self._confirmed = {k: v for k, v in self._confirmed.items() if k[0] != message.knob or k[1] > key[1]}
            answer = self.table.applied(message.knob, message.version, max(confirmed.values()))
            if not isinstance(answer, Refusal):
                self.keep(answer)

    def unapplied(self) -> Iterator[tuple[str, KnobApply]]:
        """(slot, value) of every change that its service has not confirmed."""
        for name, knob in self.table.knobs.items():
            if knob.version > (knob.applied_version or 0):
                yield knob.spec.applies, KnobApply(knob=name, value=knob.value, version=knob.version)

    def on_step(self, step: int) -> None:
        """A training step is done."""
        self.keep(self.table.on_step(step))

    # those who steer

    def acquire(self, message: KnobAcquire, letter: Letter) -> None:
        """A controller asks for a knob; one that it cannot have yet falls to it when all before it have let go."""
        answer = self.table.acquire(message.knob, letter.sender, fallback=message.fallback)
        if isinstance(answer, Refusal):
            if answer.code == "owner":
                self.keep(self.table.queue(message.knob, letter.sender))
            letter.reply(_refused(answer))
            return
        self.keep(answer.events, quiet=letter.sender)
        letter.reply(self._grant_of(message.knob))

    def release(self, message: KnobRelease, letter: Letter) -> None:
        """An owner gives a knob back."""
        owner = letter.sender if message.epoch is not None else OPERATOR
        answer = self.table.release(message.knob, owner, message.epoch)
        if isinstance(answer, Refusal):
            letter.reply(_refused(answer))
        else:
            self.keep(answer)
            letter.reply(Done())

    def set(self, message: KnobSet, letter: Letter) -> None:
        """A new value."""
        author = letter.sender if message.epoch is not None else OPERATOR
        answer = self.table.set(
            message.knob,
            message.value,
            author,
            epoch=message.epoch,
            reason=message.reason,
            if_version=message.if_version,
            take=message.take,
            for_steps=message.for_steps,
        )
        if isinstance(answer, Refusal):
            letter.reply(_refused(answer))
            return
        self.keep(answer.events)
        letter.reply(KnobOk(knob=message.knob, value=answer.new, version=answer.version))

    def hand_over(self, names: Iterable[str], to: str, fallback: Fallback | None = None) -> Refusal | None:
        """Several knobs change their owner in one step; the former owners wait their turn. All of them, or none."""
        unknown = [name for name in names if name not in self.table.knobs]
        if unknown:
            return Refusal("unknown", f"{to} wants {', '.join(unknown)}, which this run does not have")
        events: Events = ()
        for name in names:
            answer = self.table.acquire(name, to, fallback=fallback or "former", take=True)
            events += () if isinstance(answer, Refusal) else answer.events
        self.keep(events)
        return None

    def exchange(self, applies: str, new: Instance, old: str) -> None:
        """A successor is in force: its own parameters, and the knobs that the old one held, in one step."""
        events = self._declared(applies, new.declares, afresh=True)
        for name in self.table.held_by(old):
            if name in new.holds:
                answer = self.table.acquire(name, new.identity, fallback=new.fallback or "former", take=True)
                events += () if isinstance(answer, Refusal) else answer.events
            else:
                released = self.table.release(name, old, None, "was replaced by what does not hold it")
                events += () if isinstance(released, Refusal) else released
        self.keep(events + self.table.succeed(old, new.identity))

    def parameters(self, applies: str) -> dict[str, Any]:
        """The knobs that a slot applies, as they stand, as plain values."""
        own = {name: knob for name, knob in self.table.knobs.items() if knob.spec.applies == applies}
        return {name: {"spec": knob.spec.dump(), "value": knob.value} for name, knob in own.items()}

    def put_back(self, applies: str, kept: Mapping[str, Any], why: str) -> None:
        """The parameters of one that is in force again."""
        events = self.table.undeclare(applies, keep=kept)
        for name, was in kept.items():
            declared = self.table.declare(KnobSpec.load(was["spec"]), afresh=True)
            events += () if isinstance(declared, Refusal) else declared
            if name in self.table.knobs and self.table.knobs[name].value != was["value"]:
                change = self.table.set(name, was["value"], KERNEL, reason=why)
                events += () if isinstance(change, Refusal) else change.events
        self.keep(events)

    def make_lasting(self, names: Iterable[str], owner: str, why: str) -> None:
        """What was set for a number of steps holds from now on."""
        events: Events = ()
        for knob in [self.table.knobs[name] for name in names]:
            if knob.for_steps is not None:
                change = self.table.set(knob.spec.name, knob.value, owner, reason=why)
                events += () if isinstance(change, Refusal) else change.events
        self.keep(events)

    def give_back(self, names: Iterable[str], owner: str, why: str) -> None:
        """Several knobs fall back in one step."""
        events: Events = ()
        for name in names:
            answer = self.table.release(name, owner, None, why)
            events += () if isinstance(answer, Refusal) else answer
        self.keep(events)

    def gone(self, owner: str, why: str = "is gone") -> None:
        """An owner is no more: its knobs fall back."""
        self.keep(self.table.owner_gone(owner, why))

    def owners(self) -> frozenset[str]:
        """Every service or client that holds a knob or waits for one it was taken from; not the operator."""
        knobs = self.table.knobs.values()
        named = {str(knob.owner) for knob in knobs if knob.owner} | {entry[0] for k in knobs for entry in k.former}
        return frozenset(named - {OPERATOR})

    def forget_owners(self) -> None:
        """The former run's owners are all gone."""
        for owner in self.owners():
            self.gone(owner)

    def show(self, message: KnobGet, letter: Letter) -> None:
        """The table, for people."""
        shown = [_status(knob) for name, knob in self.table.knobs.items() if name.startswith(message.prefix)]
        letter.reply(Knobs(knobs=shown))

    def keep(self, events: Events, quiet: str = "") -> None:
        """Journal, tell, and let new owners know; `quiet` is answered by its caller."""
        for event in events:
            self.journal.append({"t": "knob", "kind": event.kind, "body": event.body})
            if event.kind not in QUIET:
                topic = "knob" if event.kind == "knob.set" else event.kind
                self.stream.emit(KERNEL, topic, event.flat())
        self.stream.flush()
        for event in events:
            if event.kind == "knob.granted" and event.body["owner"] != quiet:
                self._granted(event.body["owner"], self._grant_of(event.body["knob"]))

    def _declared(self, applies: str, declarations: Iterable[KnobDeclaration], *, afresh: bool = False) -> Events:
        specs = [_spec(applies, one) for one in declarations]
        events = self.table.undeclare(applies, keep=[spec.name for spec in specs])
        for spec in specs:
            declared = self.table.declare(spec, afresh=afresh)
            events += () if isinstance(declared, Refusal) else declared
        return events

    def _applies(self, name: str, applies: str) -> bool:
        return name in self.table.knobs and self.table.knobs[name].spec.applies == applies

    def _grant_of(self, name: str) -> KnobGranted:
        knob = self.table.knobs[name]
        return KnobGranted(knob=name, epoch=knob.epoch, value=knob.value, version=knob.version)


def _spec(slot: str, one: KnobDeclaration) -> KnobSpec:
    return KnobSpec(**{**one.model_dump(), "choices": tuple(one.choices)}, applies=slot)


def _refused(refusal: Refusal) -> Refused:
    return Refused(code=refusal.code, why=refusal.why)


def _status(knob: Knob) -> KnobStatus:
    described = knob.spec.dump()
    return KnobStatus(
        applies=described.pop("applies"),
        declaration=KnobDeclaration(**described),
        value=knob.value,
        version=knob.version,
        owner=knob.owner,
        epoch=knob.epoch,
        applied_step=knob.applied_step,
        author=knob.author,
        reason=knob.reason,
        until_step=knob.until_step,
    )
