"""Who steers what, rebuilt from the events of a run that is over: knobs and owners, controllers, locked slots."""

from collections.abc import Mapping
from typing import Any, Final, Literal, cast

from midflight.messages.knobs import KnobDeclaration, Knobs, KnobStatus
from midflight.messages.live import Controllers, ControllerStatus

from .facts import Fact
from .history import Declared

OPERATOR: Final = "operator"
MOST: Final = 512


class Power:
    """Folds facts and declarations."""

    def __init__(self) -> None:
        self._specs: dict[str, dict[str, Any]] = {}
        self._knobs: dict[str, dict[str, Any]] = {}
        self._rulers: dict[str, dict[str, Any]] = {}

    def fold(self, fact: Fact) -> None:
        """Take the next event."""
        if take := getattr(self, f"_on_{fact.topic.replace('.', '_')}", None):
            take(fact)

    def declare(self, declared: Declared) -> None:
        """A knob is applied by someone, perhaps at another value than before; or by nobody any more."""
        name = declared.knob
        if declared.spec is None:
            self._specs.pop(name, None)
            self._knobs.pop(name, None)
            return
        self._specs[name] = dict(declared.spec)
        self._knobs.setdefault(name, {}).update(value=declared.value, version=declared.version)

    def knobs(self) -> Knobs:
        """The knob table."""
        return Knobs.model_construct(knobs=[self._status(name) for name in {**self._specs, **self._knobs}][:MOST])

    def controllers(self) -> Controllers:
        """Who steers and who would, and the slots all of whose knobs a person holds."""
        rulers = [
            ControllerStatus.model_construct(**{**known, "standing": self._standing(known)})
            for known in self._rulers.values()
        ]
        return Controllers.model_construct(controllers=rulers[:MOST], locked=self._locked())

    def _standing(self, known: Mapping[str, Any]) -> str:
        """As it last said of itself, unless it holds a knob by now: power is ownership."""
        identity = f"{known['name']}#{known['generation']}"
        holds = any(self._knobs.get(name, {}).get("owner") == identity for name in known["holds"])
        return "active" if holds else str(known["standing"])

    def _locked(self) -> list[str]:
        held: dict[str, set[str]] = {}
        for known in self._rulers.values():
            held.setdefault(known["slot"], set()).update(name for name in known["holds"] if name in self._knobs)
        return sorted(
            slot for slot, names in held.items() if {self._knobs[name].get("owner") for name in names} == {OPERATOR}
        )

    def _status(self, name: str) -> KnobStatus:
        spec, known = self._specs.get(name, {}), self._knobs.get(name, {})
        value = known.get("value", spec.get("default", 0.0))
        declaration = KnobDeclaration.model_construct(
            name=name,
            kind=cast(Literal["float", "int", "bool", "choice"], spec.get("kind", "float")),
            unit=str(spec.get("unit", "")),
            default=spec.get("default", value),
            low=spec.get("low"),
            high=spec.get("high"),
            choices=list(spec.get("choices", ())),
            live=bool(spec.get("live", True)),
            description=str(spec.get("description", "")),
        )
        return KnobStatus.model_construct(
            declaration=declaration,
            applies=str(spec.get("applies", "learner")),
            value=value,
            version=known.get("version", 0),
            owner=known.get("owner"),
            epoch=known.get("epoch", 0),
            applied_step=known.get("applied_step"),
            author=known.get("author", ""),
            reason=known.get("reason", ""),
        )

    def _on_knob_granted(self, fact: Fact) -> None:
        epoch = int(fact.number("epoch") or 0)
        self._knobs.setdefault(fact.text("knob"), {}).update(owner=fact.text("owner"), epoch=epoch)

    def _on_knob(self, fact: Fact) -> None:
        known = self._knobs.setdefault(fact.text("knob"), {})
        known.update(value=fact.body.get("value"), version=int(fact.number("version") or 0))
        known.update(author=fact.text("author"), reason=fact.text("reason"))

    def _on_knob_released(self, fact: Fact) -> None:
        self._knobs.setdefault(fact.text("knob"), {}).update(owner=None)

    def _on_knob_applied(self, fact: Fact) -> None:
        self._knobs.setdefault(fact.text("knob"), {}).update(applied_step=int(fact.number("step") or 0))

    def _on_controller(self, fact: Fact) -> None:
        known = self._controller(fact)
        known["decisions"] += 1
        known["holds"] = [name.strip() for name in fact.text("knob").split(",") if name.strip()]

    def _on_controller_joined(self, fact: Fact) -> None:
        self._controller(fact)["kind"] = fact.text("kind")

    def _on_controller_attached(self, fact: Fact) -> None:
        self._controller(fact)["attached"] = True

    def _on_controller_promoted(self, fact: Fact) -> None:
        for known in self._rulers.values():
            if known["slot"] == fact.text("slot") and known["standing"] == "active":
                known["standing"] = "previous"
        self._stand(fact.text("name"), "active")

    def _on_controller_rolled_back(self, fact: Fact) -> None:
        self._stand(fact.text("name"), "shadow")
        for identity in fact.text("to").split(","):
            self._stand(identity.partition("#")[0], "active")

    def _on_controller_detached(self, fact: Fact) -> None:
        self._rulers.pop(fact.text("name"), None)

    def _stand(self, name: str, standing: str) -> None:
        if name in self._rulers:
            self._rulers[name]["standing"] = standing

    def _controller(self, fact: Fact) -> dict[str, Any]:
        """The table entry of the controller that a fact is about."""
        identity = fact.text("to") if fact.topic == "controller.attached" else fact.source
        name, _, generation = identity.partition("#")
        fresh = {"standing": "active", "kind": "", "holds": [], "attached": False, "decisions": 0}
        known = self._rulers.setdefault(name, {"name": name, "slot": fact.text("slot") or name, **fresh})
        number = int(generation) if generation.isdigit() else 0
        if number < known.get("generation", 0):  # the last words of one that was replaced
            return known
        known["generation"] = number
        if standing := fact.text("standing"):
            known["standing"] = standing
        return known
