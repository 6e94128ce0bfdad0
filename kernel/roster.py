"""The children of a run: one per replica, in start order, and who stands on whom."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from .restart import Kind, RestartPolicy, Strategy

Takeover = Literal["beside", "after", "restart", "never"]


class ChildSpec(Protocol):
    """What the supervisor reads of a slot's configuration (`kernel.spec.ServiceSpec` has it). Times in seconds."""

    @property
    def kind(self) -> str:
        """Which service runs there."""

    @property
    def replicas(self) -> int:
        """Number of processes."""

    @property
    def restart(self) -> Kind:
        """When to restart."""

    @property
    def strategy(self) -> Strategy:
        """Who restarts with it."""

    @property
    def significant(self) -> bool:
        """Whether its leaving ends the run, and its give-up fails it."""

    @property
    def stop_last(self) -> bool:
        """Whether it stops only when all others are gone."""

    @property
    def depends_on(self) -> Sequence[str]:
        """Slots that must be ready before it starts, and that stop after it."""

    @property
    def start_timeout_s(self) -> float:
        """Longest time from spawn to ready."""

    @property
    def heartbeat_timeout_s(self) -> float:
        """Longest silence of the main loop."""

    @property
    def intensity(self) -> int:
        """Restarts allowed within the period."""

    @property
    def period_s(self) -> float:
        """Window in which restarts are counted."""

    @property
    def backoff_s(self) -> float:
        """Pause before the first restart."""

    @property
    def backoff_max_s(self) -> float:
        """Longest pause."""

    @property
    def shutdown_s(self) -> float:
        """Time to drain."""

    @property
    def takeover(self) -> Takeover:
        """How a successor takes over while the run goes on."""


Stage = Literal["waiting", "starting", "handing", "stopping", "probation", "draining"]


@dataclass(slots=True)
class Swap:
    """One process's replacement under way; see `swap.py`."""

    number: int
    part: str
    former: str
    reason: str
    probation_s: float
    stage: Stage = "waiting"
    since: float = 0.0
    """When the stage began, monotonic s."""
    progress: int = 0
    """The old process's progress when the new one came into force."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Values of the old one's own knobs then."""
    back: bool = False
    """Whether it takes another swap back: nothing is on probation then."""


_KEPT = ("wanted", "failed", "asked", "due", "restarts", "part", "paused", "retired")


@dataclass(slots=True)
class Child:
    """One name's place in the run, over all its generations."""

    name: str
    slot: str
    spec: ChildSpec
    policy: RestartPolicy
    wanted: bool = True
    """Whether it should run; False once it has left, failed or the run is ending."""
    failed: bool = False
    asked: bool = False
    """Whether its coming exit was asked for and so is no fault."""
    due: float = 0.0
    """Earliest time of its next start, monotonic s."""
    restarts: int = 0
    part: str = ""
    """The configuration that its next incarnation gets; empty: the topology's."""
    paused: bool = False
    """Whether it takes no new work."""
    retired: bool = False
    """Scaled away: no longer one of its slot's replicas."""
    swap: Swap | None = None
    """The replacement that is under way."""
    history: list[float] = field(default_factory=list)
    """Times of the exits that count, monotonic s."""
    barren: list[float] = field(default_factory=list)
    """Of those in a row whose lives did no work."""
    strays: dict[int, float] = field(default_factory=dict)
    """Other generations that still live and are being killed: generation -> when to give them up."""

    def dump(self) -> dict[str, Any]:
        """Return the part that a successor of the kernel needs, as plain values."""
        swap = asdict(self.swap) if self.swap else None
        times = {"history": list(self.history), "barren": list(self.barren)}
        return {**{key: getattr(self, key) for key in _KEPT}, **times, "swap": swap}

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo `dump`; an empty state changes nothing."""
        for key in _KEPT if state else ():
            setattr(self, key, state[key])
        self.history = list(state.get("history", self.history))
        self.barren = list(state.get("barren", self.barren))
        self.swap = Swap(**state["swap"]) if state.get("swap") else None

    def absolve(self) -> None:
        """What it did so far counts no more: its next incarnation is another, or somebody has mended it."""
        self.history.clear()
        self.barren.clear()

    def configure(self, part: str, spec: ChildSpec) -> None:
        """The next incarnation is started by another configuration."""
        self.part, self.spec, self.policy = part, spec, policy_of(spec)


def policy_of(spec: ChildSpec) -> RestartPolicy:
    """The restart rule out of a slot's configuration."""
    return RestartPolicy(spec.restart, spec.intensity, spec.period_s, spec.backoff_s, spec.backoff_max_s)


def replica_names(slot: str, replicas: int) -> list[str]:
    """Names of a slot's processes: the slot itself, or slot-0 to slot-(n-1)."""
    return [slot] if replicas == 1 else [f"{slot}-{index}" for index in range(replicas)]


class Roster:
    """All children of a topology in start order. Raises ValueError on an unknown dependency, a cycle or a clash."""

    def __init__(self, specs: Mapping[str, ChildSpec]) -> None:
        self.specs = dict(specs)
        self.slots = self._ordered()
        self.by_name: dict[str, Child] = {}
        for slot in self.slots:
            spec = self.specs[slot]
            for name in replica_names(slot, spec.replicas):
                if name in self.by_name or (name in self.specs and name != slot):
                    raise ValueError(f"two services are called {name!r}: rename slot {slot!r} or the other one")
                self.by_name[name] = Child(name, slot, spec, policy_of(spec))

    def __iter__(self) -> Iterator[Child]:
        return iter(self.by_name.values())

    def select(self, name: str) -> list[Child]:
        """The child of that name, or all replicas of that slot; without those scaled away."""
        return [child for child in self if name in (child.name, child.slot) and not child.retired]

    def add(self, name: str, slot: str, spec: ChildSpec, part: str = "") -> Child:
        """One more replica. Those of a slot stay together, in start order."""
        fresh = Child(name, slot, spec, policy_of(spec), part=part)
        order = [*self.by_name.values(), fresh]
        order.sort(key=lambda child: self.slots.index(child.slot))
        self.by_name = {child.name: child for child in order}
        return fresh

    def vacant(self, slot: str) -> str:
        """The name of a slot's next replica: the first one free or scaled away, the slot's own for number 0."""
        known = [child for child in self if child.slot == slot]
        taken = {child.name for child in known if not child.retired}
        first = slot if any(child.name == slot for child in known) or not known else f"{slot}-0"
        names = [first, *(f"{slot}-{index}" for index in range(1, len(known) + 2))]
        return next(name for name in names if name not in taken)

    def dependencies(self, child: Child) -> list[list[Child]]:
        """The replicas of each slot it depends on."""
        return [self.select(slot) for slot in child.spec.depends_on]

    def dependents(self, child: Child) -> list[Child]:
        """The children that depend on it directly."""
        return [other for other in self if child.slot in other.spec.depends_on]

    def companions(self, child: Child) -> list[Child]:
        """Who restarts with it, by its strategy, itself left out."""
        if child.spec.strategy == "one_for_all":
            return [other for other in self if other.slot == child.slot and other is not child]
        if child.spec.strategy == "one_for_one":
            return []
        slots, found = {child.slot}, []
        for other in self:  # in start order, so one pass closes over indirect dependents
            if slots.intersection(other.spec.depends_on):
                slots.add(other.slot)
                found.append(other)
        return found

    def _ordered(self) -> list[str]:
        """Slots with dependencies first, otherwise in the order given."""
        done: dict[str, None] = {}

        def visit(slot: str, path: tuple[str, ...]) -> None:
            if slot in path:
                raise ValueError(f"depends_on goes in a circle: {' -> '.join((*path, slot))}")
            for needed in self.specs[slot].depends_on:
                if needed not in self.specs:
                    raise ValueError(f"{slot}.depends_on: there is no service {needed!r}")
                if needed not in done:
                    visit(needed, (*path, slot))
            done[slot] = None

        for slot in self.specs:
            if slot not in done:
                visit(slot, ())
        return list(done)
