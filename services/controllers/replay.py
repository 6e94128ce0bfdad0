"""The journal of a run through any controller, offline: the same decisions, or what another would have decided.

A controller's decisions depend on the order of the event stream, and on a few things that came to it otherwise: when it
began to decide, a predecessor's state, a new parameter, a pause. Those it has journaled with the number of the event
before them, so feeding both to the same class gives the same decisions, faster than they were made.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from midflight.messages.events import Event, Post
from midflight.messages.wire import decode

from .controller import Controller

Record = dict[str, Any]
"""An event of the journal: seq, ns, source, topic, step, body."""
INTERVENTIONS: Final = ("controller.took", "controller.param", "controller.paused")
FROM_OUTSIDE: Final = "replay#1"
"""Identity of a controller that was not there: whatever was in force, somebody else had set."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What one controller made of one training step."""

    step: int
    values: dict[str, float]
    state: str
    standing: str = ""

    @classmethod
    def of(cls, step: int | None, body: Record) -> "Decision":
        """Out of the body of an event of topic `controller`."""
        values = {key.removeprefix("value/"): value for key, value in body.items() if key.startswith("value/")}
        return cls(int(body["at_step"] if step is None else step), values, str(body["state"]), str(body["standing"]))


@dataclass(slots=True)
class Incarnation:
    """One process that decided in a run: how it began, what came to it besides the stream, and what it decided."""

    identity: str
    slot: str
    kind: str
    params: Record
    python_path: tuple[str, ...]
    after: int
    interventions: list[tuple[int, str, Record]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    last: int = 0
    """Number of the event of its last decision."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A replay held against what was really decided."""

    identity: str
    slot: str
    decisions: int
    equal: int
    first: str = ""
    """The first difference, or how it ended, for people."""

    @property
    def same(self) -> bool:
        """Whether every decision of the run was decided again."""
        return self.equal == self.decisions


def incarnations(events: Iterable[Record]) -> list[Incarnation]:
    """Every controller of a run, in the order in which they began."""
    found: dict[str, Incarnation] = {}
    for event in events:
        body, source = event["body"], event["source"]
        if event["topic"] == "controller.joined":
            params = json.loads(body["params"])
            path = tuple(json.loads(body["python_path"]))
            found[source] = Incarnation(source, body["slot"], body["kind"], params, path, body["after"])
        elif source in found and event["topic"] in INTERVENTIONS:
            found[source].interventions.append((body["after"], event["topic"], body))
        elif source in found and event["topic"] == "controller":
            found[source].decisions.append(Decision.of(event["step"], body))
            found[source].last = event["seq"]
    return list(found.values())


def replay(
    events: Iterable[Record],
    make: Callable[[str, "Tape"], Controller],
    like: Incarnation | None = None,
    from_step: int = 0,
) -> Iterator[Decision]:
    """Feed a run's events, in order, to `make(identity, bus)`; its decisions as they come.

    `like`: begin and go on as this process did. None: it decides from training step `from_step` on.
    """
    tape = Tape()
    controller = make(like.identity if like else FROM_OUTSIDE, tape)
    waiting = list(like.interventions) if like else []
    start = like.after if like else 0
    for event in events:
        if like and event["seq"] > like.last:
            return
        early = event["topic"] != "metrics" or event["step"] < from_step
        if not controller.live and event["seq"] > start and not (from_step and early):
            controller.go_live()
        while waiting and waiting[0][0] < event["seq"]:
            _intervene(controller, *waiting.pop(0)[1:])
        controller.follow.last = event["seq"] - 1
        controller.take(Event.model_construct(**event, stream=""))
        for body, step in tape.posted(controller):
            yield Decision.of(step, body)


def verify(events: Callable[[], Iterable[Record]], one: Incarnation, make: Callable[..., Controller]) -> Verdict:
    """Replay one process of a run and compare: values and states must be equal, bit for bit.

    One that raises ends as its process did; what it decided before counts.
    """
    again: dict[tuple[int, int], Decision] = {}
    first = ""
    try:
        for decision in replay(events(), make, one):
            again[_turn(again, decision)] = decision
    except Exception as error:
        first = f"it raised {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    equal = 0
    seen: dict[tuple[int, int], Decision] = {}
    for real in one.decisions:
        turn = _turn(seen, real)
        seen[turn], mine = real, again.get(turn)
        if mine and (mine.values, mine.state) == (real.values, real.state):
            equal += 1
        else:
            first = first or f"step {real.step}: decided {real.values}, replayed {mine.values if mine else 'nothing'}"
    return Verdict(one.identity, one.slot, len(one.decisions), equal, first)


def _turn(known: Mapping[tuple[int, int], Decision], one: Decision) -> tuple[int, int]:
    """A step, and the how manieth time it was trained: a learner that died trains some steps again."""
    number = 0
    while (one.step, number) in known:
        number += 1
    return one.step, number


class Tape:
    """A bus without a run: what a controller posts is kept, everything else is nobody's business."""

    def __init__(self) -> None:
        self._posts: list[Post] = []

    def now(self) -> float:
        """There is no time in a replay."""
        return 0.0

    def send(self, port: str, frames: list[bytes], to: str = "") -> bool:
        """Keep a post."""
        message = decode(frames).message
        if isinstance(message, Post):
            self._posts.append(message)
        return True

    def posted(self, controller: Controller) -> Iterator[tuple[Record, int | None]]:
        """(body, step) of each decision since the last call; all posts are acknowledged."""
        posts, self._posts = self._posts, []
        for post in posts:
            controller.mail.settle(("event", post.key))
            if post.topic == "controller":
                yield post.body, post.step


def _intervene(controller: Controller, topic: str, body: Record) -> None:
    match topic:
        case "controller.took":
            controller.import_state(body["schema"], json.loads(body["state"]))
        case "controller.param":
            controller.retune(body["field"], body["value"])
        case "controller.paused":
            controller.paused = bool(body["paused"])
