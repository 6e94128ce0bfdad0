"""Status, knobs and controllers of a run that is over, rebuilt from its events: what the kernel would have answered."""

from collections.abc import Mapping
from typing import Any, Final, Literal, cast

from midflight.messages.control import ServiceStatus, Status
from midflight.messages.knobs import KnobDeclaration, Knobs, KnobStatus
from midflight.messages.live import Controllers, ControllerStatus

from .facts import Fact

_SHOWN: Final = {
    "metrics": ("step", "reward_mean", "version"),
    "throughput": ("tokens_per_s", "busy", "version"),
    "controller": ("at_step",),
}


class Rebuild:
    """Folds facts; `answers` gives the three messages as of the last one.

    They are for the screens alone, and unchecked: events may be of another version, or have been tampered with.
    """

    def __init__(self, run_id: str, config: Mapping[str, Any], declared: Mapping[str, Mapping[str, Any]]) -> None:
        self.run_id, self.config, self.declared = run_id, config, declared
        self.services: dict[str, dict[str, Any]] = {}
        self.knobs: dict[str, dict[str, Any]] = {}
        self.controllers: dict[str, dict[str, Any]] = {}
        self.locked: set[str] = set()
        self.seq, self.began, self.now, self.stopping = 0, 0, 0, ""

    def fold(self, fact: Fact) -> None:
        """Take the next event."""
        self.seq, self.now = fact.seq, fact.ns
        self.began = self.began or fact.ns
        take = getattr(self, f"_on_{fact.topic.replace('.', '_')}", None)
        if take:
            take(fact)
        if fact.topic in _SHOWN:
            self._stats(fact)

    def answers(self) -> tuple[Status, Knobs, Controllers]:
        """What the kernel would have said at that moment."""
        services = [self._service(name, known) for name, known in self.services.items()]
        status = Status.model_construct(
            run_id=self.run_id,
            boot="",
            kernel_pid=0,
            warden_pid=0,
            seq=self.seq,
            up_s=(self.now - self.began) / 1e9,
            stopping=self.stopping or None,
            services=services,
        )
        knobs = Knobs.model_construct(knobs=[self._knob(name) for name in {**self.declared, **self.knobs}][:512])
        rulers = [ControllerStatus.model_construct(**known) for known in self.controllers.values()][:512]
        return status, knobs, Controllers.model_construct(controllers=rulers, locked=sorted(self.locked))

    def _service(self, name: str, known: Mapping[str, Any]) -> ServiceStatus:
        slot = str(known.get("slot") or name)
        kind = str(self.config.get("services", {}).get(slot, {}).get("kind", slot))
        return ServiceStatus.model_construct(
            name=name,
            generation=known.get("generation") or 0,
            kind=kind[:40],
            state=str(known.get("state", "?")),
            pid=known.get("pid") or 0,
            up_s=(self.now - known.get("since", self.now)) / 1e9,
            seen_s=0.0,
            restarts=known.get("restarts") or 0,
            progress=0,
            stats=known.get("stats", {}),
            cause=known.get("cause") or None,
            slot=slot,
            paused=bool(known.get("paused")),
        )

    def _knob(self, name: str) -> KnobStatus:
        spec, known = self.declared.get(name, {}), self.knobs.get(name, {})
        value = known.get("value", spec.get("value", spec.get("default", 0.0)))
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

    def _stats(self, fact: Fact) -> None:
        service = self.services.get(fact.source.partition("#")[0])
        if service is not None:
            numbers = {key: fact.body[key] for key in _SHOWN[fact.topic] if key in fact.body}
            service["stats"] = numbers if fact.step is None else {"step": fact.step, **numbers}

    def _on_service_state(self, fact: Fact) -> None:
        known = self.services.setdefault(fact.text("name"), {"since": fact.ns})
        if known.get("generation") != fact.body.get("generation"):
            known["since"], known["stats"] = fact.ns, {}
        known.update(fact.body)

    def _on_run_state(self, fact: Fact) -> None:
        self.stopping = f"{fact.text('state')} {fact.text('why')}".strip()[:200]

    def _on_knob(self, fact: Fact) -> None:
        known = self.knobs.setdefault(fact.text("knob"), {})
        known.update(value=fact.body.get("value"), version=int(fact.number("version") or 0))
        known.update(author=fact.text("author"), reason=fact.text("reason"))

    def _on_knob_granted(self, fact: Fact) -> None:
        epoch = int(fact.number("epoch") or 0)
        self.knobs.setdefault(fact.text("knob"), {}).update(owner=fact.text("owner"), epoch=epoch)

    def _on_knob_released(self, fact: Fact) -> None:
        self.knobs.setdefault(fact.text("knob"), {}).update(owner=None)

    def _on_knob_applied(self, fact: Fact) -> None:
        self.knobs.setdefault(fact.text("knob"), {}).update(applied_step=int(fact.number("step") or 0))

    def _on_controller(self, fact: Fact) -> None:
        known = self._controller(fact)
        known["decisions"] += 1
        known["holds"] = [name.strip() for name in fact.text("knob").split(",") if name.strip()]

    def _on_controller_joined(self, fact: Fact) -> None:
        self._controller(fact)["kind"] = fact.text("kind")

    def _on_controller_attached(self, fact: Fact) -> None:
        self._controller(fact)["attached"] = True

    def _on_controller_promoted(self, fact: Fact) -> None:
        for known in self.controllers.values():
            if known["slot"] == fact.text("slot") and known["standing"] == "active":
                known["standing"] = "previous"
        self._stand(fact.text("name"), "active")

    def _on_controller_rolled_back(self, fact: Fact) -> None:
        self._stand(fact.text("name"), "shadow")
        for identity in fact.text("to").split(","):
            self._stand(identity.partition("#")[0], "active")

    def _on_controller_detached(self, fact: Fact) -> None:
        self.controllers.pop(fact.text("name"), None)

    def _on_controller_locked(self, fact: Fact) -> None:
        self.locked.add(fact.text("slot"))

    def _on_controller_unlocked(self, fact: Fact) -> None:
        self.locked.discard(fact.text("slot"))

    def _stand(self, name: str, standing: str) -> None:
        if name in self.controllers:
            self.controllers[name]["standing"] = standing

    def _controller(self, fact: Fact) -> dict[str, Any]:
        """The table entry of the controller that a fact is about."""
        identity = fact.text("to") if fact.topic == "controller.attached" else fact.source
        name, _, generation = identity.partition("#")
        fresh = {"standing": "active", "kind": "", "holds": [], "attached": False, "decisions": 0}
        known = self.controllers.setdefault(name, {"name": name, "slot": fact.text("slot") or name, **fresh})
        known["generation"] = int(generation) if generation.isdigit() else 0
        if standing := fact.text("standing"):
            known["standing"] = standing
        return known
