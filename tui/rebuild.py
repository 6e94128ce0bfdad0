"""Status, knobs and controllers of a run that is over, rebuilt from its events: what the kernel would have answered."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Final

from midflight.kernel.instance import LIVE
from midflight.messages.control import ServiceStatus, Status
from midflight.messages.knobs import Knobs
from midflight.messages.live import Controllers

from .ended import GONE
from .facts import Fact
from .history import Declared
from .rebuild_power import Power

_SHOWN: Final = {
    "metrics": ("step", "reward_mean", "version"),
    "throughput": ("tokens_per_s", "busy", "version"),
    "controller": ("at_step",),
}
Identity = tuple[str, int]
"""Name and generation of a process."""


class Rebuild:
    """Folds facts; `answers` gives the three messages as of the last one.

    They are for the screens alone, and unchecked: events may be of another version, or have been tampered with.
    `declared`: what the journal says of the knobs' declarations, and after how many facts; it may grow meanwhile.
    """

    def __init__(self, run_id: str, config: Mapping[str, Any], declared: Sequence[tuple[int, Declared]] = ()) -> None:
        self.run_id, self.config, self.declared = run_id, config, declared
        self.services: dict[Identity, dict[str, Any]] = {}
        self.power = Power()
        self.seq, self.began, self.now, self.stopping = 0, 0, 0, ""
        self.facts, self._used = 0, 0

    def copy(self) -> "Rebuild":
        """As it stands: what is folded into one is not in the other."""
        twin = Rebuild(self.run_id, self.config, self.declared)
        twin.services, twin.power = deepcopy(self.services), deepcopy(self.power)
        twin.seq, twin.began, twin.now, twin.stopping = self.seq, self.began, self.now, self.stopping
        twin.facts, twin._used = self.facts, self._used
        return twin

    def fold(self, fact: Fact) -> None:
        """Take the next event."""
        self._declare()
        self.facts += 1
        self.seq, self.now = fact.seq, fact.ns
        self.began = self.began or fact.ns
        if service := self._of(fact.source):
            service["seen"] = fact.ns
        if take := getattr(self, f"_on_{fact.topic.replace('.', '_')}", None):
            take(fact)
        self.power.fold(fact)
        if fact.topic in _SHOWN:
            self._stats(fact)

    def answers(self) -> tuple[Status, Knobs, Controllers]:
        """What the kernel would have said at that moment."""
        self._declare()
        status = Status.model_construct(
            run_id=self.run_id,
            boot="",
            kernel_pid=0,
            warden_pid=0,
            seq=self.seq,
            up_s=(self.now - self.began) / 1e9,
            stopping=self.stopping or None,
            services=[self._service(*identity) for identity in self._listed()],
        )
        return status, self.power.knobs(), self.power.controllers()

    def _declare(self) -> None:
        """What the journal says of declarations up to here."""
        while self._used < len(self.declared) and self.declared[self._used][0] <= self.facts:
            self.power.declare(self.declared[self._used][1])
            self._used += 1

    def _listed(self) -> list[Identity]:
        """Those that live, and of a name of which none does the newest, unless it was scaled away."""
        newest: dict[str, int] = {}
        for name, generation in self.services:
            newest[name] = max(generation, newest.get(name, 0))
        living = {one[0] for one, known in self.services.items() if _lives(known)}
        return [
            (name, generation)
            for (name, generation), known in self.services.items()
            if _lives(known) or (name not in living and newest[name] == generation and not known.get("retired"))
        ]

    def _service(self, name: str, generation: int) -> ServiceStatus:
        known = self.services[name, generation]
        slot = str(known.get("slot") or name)
        kind = str(self.config.get("services", {}).get(slot, {}).get("kind", slot))
        lives = _lives(known)
        return ServiceStatus.model_construct(
            name=name,
            generation=generation,
            kind=kind[:40],
            state=GONE if known.get("left") and known.get("state") in LIVE else str(known.get("state", "?")),
            pid=known.get("pid") or 0,
            up_s=(self.now - known["since"]) / 1e9 if lives else 0.0,
            seen_s=(self.now - known["seen"]) / 1e9 if lives else 0.0,
            restarts=known.get("restarts") or 0,
            progress=0,
            stats=known["stats"] if lives else {},
            cause=known.get("cause") or None,
            slot=slot,
            role=known.get("role") or "active",
            paused=bool(known.get("paused")),
        )

    def _of(self, source: str) -> dict[str, Any] | None:
        """The process that an event comes from."""
        name, _, generation = source.partition("#")
        return self.services.get((name, int(generation))) if generation.isdigit() else None

    def _stats(self, fact: Fact) -> None:
        if (service := self._of(fact.source)) is not None:
            numbers = {key: fact.body[key] for key in _SHOWN[fact.topic] if key in fact.body}
            service["stats"] = numbers if fact.step is None else {"step": fact.step, **numbers}

    def _on_service_state(self, fact: Fact) -> None:
        key = fact.text("name"), int(fact.number("generation") or 0)
        known = self.services.get(key)
        if known is None:
            known = self.services[key] = {"since": fact.ns, "stats": {}}
            self._forget(*key)
        known.update(fact.body, seen=fact.ns)

    def _forget(self, name: str, newest: int) -> None:
        """Former generations that ended; they are not shown any more, and a long run has many."""
        for one in [one for one in self.services if one[0] == name and one[1] < newest]:
            if not _lives(self.services[one]):
                del self.services[one]

    def _on_service_exit(self, fact: Fact) -> None:
        if known := self.services.get((fact.text("name"), int(fact.number("generation") or 0))):
            known["left"] = True

    def _on_swap(self, fact: Fact) -> None:
        """A successor that did not come into force is gone, whether or not its end was told."""
        if fact.text("stage") == "rolled_back":
            for (name, _), known in self.services.items():
                if name == fact.text("name") and known.get("role") == "standby":
                    known["left"] = True

    def _on_kernel_boot(self, fact: Fact) -> None:
        """The first kernel of a warden: nothing of the run before lives."""
        if fact.body.get("generation") == 1:
            self.stopping = ""
            for known in self.services.values():
                known["left"] = True

    def _on_run_state(self, fact: Fact) -> None:
        self.stopping = f"{fact.text('state')} {fact.text('why')}".strip()[:200]


def _lives(known: Mapping[str, Any]) -> bool:
    return known.get("state") in LIVE and not known.get("left")
