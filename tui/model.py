"""A run folded into what the screens show: plain, bounded state without a terminal, a socket or a clock."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Self

from midflight.messages.base import Scalar
from midflight.messages.control import Status
from midflight.messages.knobs import Knobs
from midflight.messages.live import Controllers
from midflight.messages.samples import LedgerStatus

from .ended import GONE_ALARM, after_end
from .facts import Batch, Fact
from .host import HostSample
from .series import Series
from .timeline import Timeline
from .told import Line, Told

SERIES: Final = 512
DECISIONS: Final = 400
CONTROLLERS: Final = 64
MARKS: Final = 2000
HOST_LOOKS: Final = 600
SILENT_S: Final = 3.0
"""A kernel that has not answered for so long is silent."""
MEASURED: Final = frozenset({"metrics", "evaluation", "sft", "throughput", "overlap"})
"""Topics whose numbers become series."""

MarkKind = Literal["hand", "controller", "rule", "swap", "restart"]


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment at which something of the run was changed. `step`: the newest trained one before it."""

    step: int
    ns: int
    seq: int
    kind: MarkKind
    text: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What a controller decided: measured inputs, values out, its reason; `standing` as it was then."""

    seq: int
    ns: int
    name: str
    slot: str
    standing: str
    at_step: int
    inputs: Mapping[str, Scalar]
    values: Mapping[str, float]
    reason: str


@dataclass
class RunModel:
    """Everything known of a run. `fold` takes a batch; nothing else changes it."""

    status: Status | None = None
    knobs: Knobs | None = None
    controllers: Controllers | None = None
    ledger: LedgerStatus | None = None
    silent_s: float | None = None
    over: bool = False
    ended: bool = False
    """Nothing of it lives at the moment that is shown."""
    orderly: bool = False
    """The end of the run was told."""
    gap: bool = False
    reading: bool = False
    problem: str = ""
    seq: int = 0
    ns: int = 0
    step: int = 0
    version: int = -1
    facts: int = 0
    """Facts folded."""
    changes: int = 0
    """Batches that changed something."""
    series: dict[str, Series] = field(default_factory=dict)
    last: dict[str, dict[str, Scalar]] = field(default_factory=dict)
    """topic -> body of its newest event."""
    timeline: Timeline = field(default_factory=Timeline)
    told: Told = field(default_factory=Told)
    marks: deque[Mark] = field(default_factory=lambda: deque(maxlen=MARKS))
    decisions: dict[str, deque[Decision]] = field(default_factory=dict)
    """controller -> its newest decisions, oldest first."""
    exits: dict[str, Fact] = field(default_factory=dict)
    """service -> its last unasked exit."""
    hosts: deque[HostSample] = field(default_factory=lambda: deque(maxlen=HOST_LOOKS))
    rates: dict[str, float] = field(default_factory=dict)
    """rollout -> the tokens a second it last told."""
    _knob_values: dict[str, float] = field(default_factory=dict)

    def fold(self, batch: Batch) -> bool:
        """Take a batch; -> whether anything but the age of the link changed."""
        for fact in batch.facts:
            self._take(fact)
        for name in ("status", "knobs", "controllers", "ledger"):
            if (answer := getattr(batch, name)) is not None:
                setattr(self, name, answer)
        if batch.host:
            self.hosts.append(batch.host)
        before = self._link()
        self.silent_s, self.over, self.ended = batch.silent_s, batch.over, batch.ended
        self.reading, self.problem = batch.reading, batch.problem
        self.gap = self.gap or batch.gap
        if self.ended and self.status:
            self.status = after_end(self.status, self.orderly)
        news = batch.facts or batch.status or batch.knobs or batch.controllers or batch.ledger or batch.host
        changed = bool(news) or before != self._link()
        self.changes += changed
        return changed

    def copy(self) -> Self:
        """As it stands: what is folded into one is not in the other."""
        return replace(
            self,
            series={name: series.copy() for name, series in self.series.items()},
            last=dict(self.last),
            timeline=self.timeline.copy(),
            told=self.told.copy(),
            marks=self.marks.copy(),
            decisions={name: decisions.copy() for name, decisions in self.decisions.items()},
            exits=dict(self.exits),
            hosts=self.hosts.copy(),
            rates=dict(self.rates),
            _knob_values=dict(self._knob_values),
        )

    def _link(self) -> tuple[object, ...]:
        """What is shown of the link; how long it is silent by the second, later by the minute."""
        age = self.silent_s if self.silent_s is not None and _silent(self.silent_s) else 0.0
        return self.over, self.ended, self.reading, self.problem, int(age) if age < 60 else 60 + age // 60

    def alarms(self) -> list[str]:
        """What needs a person, worst first."""
        found = [f"nothing more will come: {self.problem}"] if self.problem else []
        found += [GONE_ALARM] if self.ended and not self.orderly else []
        if self.silent_s is not None and _silent(self.silent_s) and not self.over:
            found.append(f"the kernel is silent for {self.silent_s:.0f} s")
        for service in self.status.services if self.status else ():
            if service.state in ("failed", "backoff", "unresponsive", "stopping-late"):
                found.append(f"{service.name} {service.state}: {service.cause or 'no cause told'}")
        found += [f"ledger: {problem}" for problem in (self.ledger.problems if self.ledger else ())]
        if self.gap:
            found.append("events were lost: what is shown has a hole")
        return found

    def reward(self) -> tuple[float, float] | None:
        """The newest reward, and how far it is from the mean of the twenty buckets before; None before the first."""
        series = self.series.get("reward_mean")
        if not series:
            return None
        before = list(series.tail(21))[:-1] or [series.last]
        return series.last, series.last - sum(before) / len(before)

    def tell(self, line: Line) -> None:
        """Add a line of this terminal's own to the decisions feed."""
        self.told.add(line)
        self.changes += 1

    def _take(self, fact: Fact) -> None:
        self.seq, self.ns = max(self.seq, fact.seq), fact.ns
        self.facts += 1
        if fact.topic in MEASURED:
            self._measure(fact)
        elif take := _TAKERS.get(fact.topic):
            take(self, fact)
        self.told.fold(fact)

    def _measure(self, fact: Fact) -> None:
        body = dict(fact.body)
        self.last[fact.topic] = body
        if fact.topic == "metrics" and fact.step is not None:
            self.step = fact.step
            self.version = int(fact.number("version") or 0)
            self.timeline.add(fact.step, fact.ns, int(fact.number("sequences") or 0), self.version)
        if fact.topic == "throughput" and (rate := fact.number("tokens_per_s")) is not None:
            self.rates[fact.source.partition("#")[0]] = rate
        x = float(fact.step if fact.step is not None and fact.topic != "sft" else self.step)
        prefix = "" if fact.topic in ("metrics", "evaluation") else f"{fact.topic}/"
        for name, value in body.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                at = float(fact.step) if fact.topic == "sft" and fact.step is not None else x
                self._point(prefix + name, at, fact.ns, float(value))

    def _point(self, name: str, x: float, ns: int, value: float) -> None:
        series = self.series.get(name)
        if series is None:
            if len(self.series) >= SERIES:
                return
            series = self.series[name] = Series()
        series.add(x, ns, value)

    def _mark(self, fact: Fact, kind: MarkKind, text: str) -> None:
        self.marks.append(Mark(self.step, fact.ns, fact.seq, kind, text))

    def _knob(self, fact: Fact) -> None:
        name, author, value = fact.text("knob"), fact.text("author"), fact.number("value")
        if value is None:
            self._mark(fact, "hand", f"{name} = {fact.text('value')}")
            return
        before = self._knob_values.get(name)
        self._knob_values[name] = value
        self._point(f"knob/{name}", float(self.step), fact.ns, value)
        if "#" not in author and value != before:
            self._mark(fact, "hand" if author == "operator" else "rule", f"{name} = {value:.4g} ({author})")
        elif before is not None and abs(value - before) > 0.01 * abs(before):
            self._mark(fact, "controller", f"{name} {before:.4g} -> {value:.4g} ({author})")

    def _decision(self, fact: Fact) -> None:
        name = fact.source.partition("#")[0]
        values = {
            key.removeprefix("value/"): float(value)
            for key, value in fact.body.items()
            if key.startswith("value/") and isinstance(value, int | float)
        }
        if name not in self.decisions:
            if len(self.decisions) >= CONTROLLERS:
                return
            self.decisions[name] = deque(maxlen=DECISIONS)
        at_step = int(fact.number("at_step") or fact.step or 0)
        inputs = {key: value for key, value in fact.body.items() if key not in _NOT_INPUTS and "/" not in key}
        self.decisions[name].append(
            Decision(
                fact.seq, fact.ns, name, fact.text("slot"), fact.text("standing") or "active", at_step, inputs, values,
                fact.text("reason"),
            )
        )  # fmt: skip
        for knob, value in values.items():
            self._point(f"{name}/{knob}", float(at_step), fact.ns, value)

    def _exit(self, fact: Fact) -> None:
        if not fact.body.get("asked") and fact.body.get("code") != 0:
            self.exits[fact.text("name")] = fact
            self._mark(fact, "restart", f"{fact.text('name')} died: {fact.text('cause')}")

    def _run(self, fact: Fact) -> None:
        self.orderly = fact.text("state") == "over"

    def _boot(self, fact: Fact) -> None:
        self.orderly = False
        if fact.body.get("generation") not in (1, None):
            self._mark(fact, "restart", f"kernel generation {fact.text('generation')}")

    def _ruled(self, fact: Fact) -> None:
        did = fact.topic.removeprefix("controller.").replace("_", " ")
        self._mark(fact, "rule", f"{fact.text('slot')}: {fact.text('name')} {did}")

    def _swap(self, fact: Fact) -> None:
        if fact.text("stage") in ("probation", "done", "rolled_back"):
            self._mark(fact, "swap", f"swap of {fact.text('slot')}: {fact.text('stage').replace('_', ' ')}")


def _silent(seconds: float | None) -> bool:
    return seconds is not None and seconds > SILENT_S


_NOT_INPUTS: Final = frozenset({"slot", "standing", "knob", "at_step", "state", "schema", "reason"})
_TAKERS: Final[dict[str, Callable[[RunModel, Fact], None]]] = {
    "knob": RunModel._knob,
    "controller": RunModel._decision,
    "service.exit": RunModel._exit,
    "kernel.boot": RunModel._boot,
    "run.state": RunModel._run,
    "swap": RunModel._swap,
    **{
        f"controller.{did}": RunModel._ruled
        for did in ("attached", "promoted", "rolled_back", "detached", "locked", "unlocked", "param")
    },
}
