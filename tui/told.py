"""The decisions feed: which events a person wants to read, each as one line, repeats of a kind kept as one."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Self

from .facts import Fact
from .words import number, plain

Weight = Literal["info", "good", "warn", "bad"]
KEPT: Final = 300
STAGED: Final = "swap "
"""Lines of such a group are stages of one thing, not repeats."""
RECENT: Final = 12
"""A line of the same kind among so many newest ones is replaced, with a count, and moves to the end."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line. `group` names lines of a kind that replace each other; empty: never."""

    seq: int
    ns: int
    step: int | None
    who: str
    text: str
    why: str = ""
    weight: Weight = "info"
    group: str = ""
    count: int = 1


class Told:
    """The newest lines, oldest first."""

    def __init__(self) -> None:
        self.lines: deque[Line] = deque(maxlen=KEPT)

    def copy(self) -> Self:
        """As it stands: what is added to one is not in the other."""
        twin = type(self)()
        twin.lines.extend(self.lines)
        return twin

    def fold(self, fact: Fact) -> None:
        """Take an event if it tells something."""
        make = TELLERS.get(fact.topic)
        line = make(fact) if make else None
        if line:
            self.add(line)

    def add(self, line: Line) -> None:
        """Append, in place of a recent line of its group."""
        if line.group:
            for back in range(1, min(RECENT, len(self.lines)) + 1):
                old = self.lines[-back]
                if old.group == line.group:
                    del self.lines[-back]
                    line = _counted(line, old.count + (not line.group.startswith(STAGED)))
                    break
        self.lines.append(line)


def _counted(line: Line, count: int) -> Line:
    return Line(line.seq, line.ns, line.step, line.who, line.text, line.why, line.weight, line.group, count)


def _line(fact: Fact, text: str, weight: Weight = "info", group: str = "", why: str = "", who: str = "") -> Line:
    reason = why or fact.text("reason") or fact.text("why")
    return Line(fact.seq, fact.ns, fact.step, who or fact.source, plain(text), plain(reason), weight, group)


def _knob(fact: Fact) -> Line:
    name, author = fact.text("knob"), fact.text("author")
    old = fact.number("old")
    value = fact.body.get("value")
    change = f"{number(old)} -> {number(value)}" if old is not None else f"= {number(value)}"
    until = f" until step {fact.text('until_step')}" if fact.body.get("until_step") is not None else ""
    group = f"knob {name} {author}" if "#" in author else ""
    return _line(fact, f"{name} {change}{until}", "info" if group else "good", group, who=author)


def _granted(fact: Fact) -> Line:
    return _line(fact, f"{fact.text('knob')} is held by {fact.text('owner')}", group=f"granted {fact.text('knob')}")


def _released(fact: Fact) -> Line:
    return _line(fact, f"{fact.text('knob')} released", group=f"released {fact.text('knob')}")


def _exit(fact: Fact) -> Line | None:
    asked = fact.body.get("asked") or fact.body.get("code") == 0
    name = f"{fact.text('name')}#{fact.text('generation')}"
    return _line(fact, f"{name} {'left' if asked else 'died'}", "info" if asked else "bad", why=fact.text("cause"))


def _state(fact: Fact) -> Line | None:
    state, name = fact.text("state"), f"{fact.text('name')}#{fact.text('generation')}"
    if state in ("backoff", "failed", "unresponsive"):
        return _line(fact, f"{name} {state}", "bad", f"state {name}", fact.text("cause"))
    if fact.body.get("paused"):
        return _line(fact, f"{name} paused", "warn", f"state {name}")
    if fact.body.get("generation") != 1 and state == "running":
        return _line(fact, f"{name} is running", "good", f"state {name}")
    return None


def _failed(fact: Fact) -> Line:
    return _line(fact, f"{fact.text('name')} failed for good", "bad")


def _note(fact: Fact) -> Line:
    level = fact.text("level")
    weight: Weight = "bad" if level == "error" else "warn" if level in ("warn", "warning") else "info"
    return _line(fact, fact.text("text"), weight)


def _run(fact: Fact) -> Line:
    return _line(fact, f"run {fact.text('state')}", "warn")


def _boot(fact: Fact) -> Line | None:
    if fact.body.get("generation") in (1, None):
        return None
    return _line(fact, f"the kernel is back (generation {fact.text('generation')})", "warn")


def _controller(fact: Fact) -> Line:
    did = fact.topic.removeprefix("controller.").replace("_", " ")
    slot, name = fact.text("slot"), fact.text("name") or fact.source
    if did in ("locked", "unlocked"):
        return _line(fact, f"{slot} {did} by hand", "good")
    moved = did in ("promoted", "rolled back")
    change = f": {fact.text('from') or 'nobody'} -> {fact.text('to') or 'nobody'}" if moved else ""
    return _line(fact, f"{name} {did}{f' in {slot}' if slot else ''}{change}", "good")


def _param(fact: Fact) -> Line:
    return _line(fact, f"uses {fact.text('field')} = {number(fact.body.get('value'))}", group=f"param {fact.source}")


def _swap(fact: Fact) -> Line:
    stage = fact.text("stage")
    weight: Weight = "bad" if stage == "rolled_back" else "good" if stage == "done" else "info"
    text = f"swap {fact.text('number')} of {fact.text('slot')}: {stage.replace('_', ' ')}"
    return _line(fact, text, weight, f"{STAGED}{fact.text('slot')} {fact.text('number')}")


def _evaluation(fact: Fact) -> Line:
    values = " ".join(
        f"{name.removeprefix('eval/')} {number(value)}" for name, value in fact.body.items() if name.startswith("eval/")
    )
    if not values:
        return _line(fact, f"held-out: all {fact.text('refused')} samples were refused", "bad", "evaluation")
    return _line(fact, f"held-out {values}", "good", "evaluation")


def _checkpoint(fact: Fact) -> Line:
    return _line(fact, f"checkpoint of step {fact.text('step')}", group="checkpoint")


TELLERS: Final[dict[str, Callable[[Fact], Line | None]]] = {
    "knob": _knob,
    "knob.granted": _granted,
    "knob.released": _released,
    "service.exit": _exit,
    "service.state": _state,
    "service.failed": _failed,
    "note": _note,
    "run.state": _run,
    "kernel.boot": _boot,
    "controller.attached": _controller,
    "controller.promoted": _controller,
    "controller.rolled_back": _controller,
    "controller.detached": _controller,
    "controller.locked": _controller,
    "controller.unlocked": _controller,
    "controller.joined": _controller,
    "controller.took": _controller,
    "controller.param": _param,
    "swap": _swap,
    "evaluation": _evaluation,
    "checkpoint": _checkpoint,
}
"""topic -> its line, None when there is nothing worth one."""
