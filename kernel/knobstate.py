"""The knob table's state: knobs, the events that made them, and replay. What may happen is decided in `knobs.py`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from midflight.messages.base import Scalar
from midflight.messages.knobs import Fallback

from .knobspec import KnobSpec, Value


@dataclass(frozen=True, slots=True)
class KnobEvent:
    """A fact about a knob: `knob.declared`, `.undeclared`, `.granted`, `.queued`, `.released`, `.set`, `.applied`."""

    kind: str
    body: dict[str, Any]

    def flat(self) -> dict[str, Scalar]:
        """Return the scalar part of the body, for the event stream."""
        return {k: v for k, v in self.body.items() if v is None or isinstance(v, str | int | float | bool)}


Events = tuple[KnobEvent, ...]


@dataclass(slots=True)
class Knob:
    """One knob as it stands."""

    spec: KnobSpec
    value: Value
    version: int = 0
    epoch: int = 0
    owner: str | None = None
    fallback: Fallback = "hold"
    former: list[list[Any]] = field(default_factory=list)
    """Those who wait for it, the last one first in turn: [owner, fallback]."""
    author: str = ""
    reason: str = ""
    previous: Value = 0.0
    """The value before the last change."""
    for_steps: int | None = None
    """How long the last change is to hold; None: until the next."""
    taken: bool = False
    """Whether that change also took the knob from its owner."""
    until_step: int | None = None
    """The step from which it no longer holds, once it is in force."""
    applied_version: int | None = None
    applied_step: int | None = None


class KnobState:
    """All knobs of a run, changed only by events."""

    def __init__(self) -> None:
        self.knobs: dict[str, Knob] = {}
        self.retired: dict[str, list[int]] = {}
        """Knob that nobody applies any more -> its last version and epoch: they never go back."""

    def snapshot(self) -> dict[str, Any]:
        """Return the table as plain values."""
        knobs = {name: {**asdict(knob), "spec": knob.spec.dump()} for name, knob in self.knobs.items()}
        return {"knobs": knobs, "retired": {name: list(last) for name, last in self.retired.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo `snapshot`."""
        self.knobs = {
            name: Knob(**{**entry, "spec": KnobSpec.load(entry["spec"]), "former": [list(f) for f in entry["former"]]})
            for name, entry in state["knobs"].items()
        }
        self.retired = {name: list(last) for name, last in state["retired"].items()}

    def replay(self, event: KnobEvent) -> None:
        """Apply one recorded fact. Raises ValueError on a kind that is none of this table's."""
        body = event.body
        name = body["knob"]
        if event.kind == "knob.declared":
            spec = KnobSpec.load(body["spec"])
            _, epoch = self.retired.pop(name, (0, 0))
            knob = self.knobs.setdefault(name, Knob(spec, body["value"], epoch=epoch))
            if body["version"] != knob.version:
                knob.author, knob.reason, knob.previous = "", "", body["value"]
                knob.for_steps, knob.taken, knob.until_step = None, False, None
            knob.spec, knob.value, knob.version = spec, body["value"], body["version"]
            return
        if event.kind == "knob.undeclared":
            if gone := self.knobs.pop(name, None):
                self.retired[name] = [gone.version, gone.epoch]
            return
        knob = self.knobs[name]
        if event.kind == "knob.granted":
            knob.owner, knob.epoch, knob.fallback = body["owner"], body["epoch"], body["fallback"]
            knob.former = [list(entry) for entry in body["former"]]
        elif event.kind == "knob.queued":
            knob.former = [list(entry) for entry in body["former"]]
        elif event.kind == "knob.released":
            knob.owner, knob.epoch, knob.fallback, knob.former = None, body["epoch"], "hold", []
        elif event.kind == "knob.set":
            again = knob.for_steps is not None and body.get("for_steps") is not None
            if not again:  # of several limited changes in a row the first one's former value comes back
                knob.previous = knob.value
            knob.taken = body.get("taken", False) or (again and knob.taken)
            knob.value, knob.version, knob.until_step = body["value"], body["version"], None
            knob.author, knob.reason, knob.for_steps = body["author"], body["reason"], body.get("for_steps")
        elif event.kind == "knob.applied":
            knob.applied_version, knob.applied_step = body["version"], body["step"]
            if knob.for_steps is not None and body["version"] == knob.version:
                knob.until_step = body["step"] + knob.for_steps
        else:
            raise ValueError(f"{event.kind!r} is no event of the knob table")

    def _record(self, kind: str, name: str, **body: Any) -> Events:
        event = KnobEvent(kind, {"knob": name, **body})
        self.replay(event)
        return (event,)
