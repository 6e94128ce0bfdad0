"""How far a shadow's decisions are from those of the controller that steers: pure, over what both journaled.

Paired is what both decided about a knob at the same training step.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Bounds = Mapping[str, tuple[float | None, float | None]]
PREFIX: Final = "value/"


@dataclass(frozen=True, slots=True)
class KnobComparison:
    """One knob, over the steps at which both decided about it."""

    knob: str
    pairs: int
    agree: float
    """Share of the pairs whose values agree."""
    mean_delta: float
    max_delta: float
    first_differs: int | None
    """First training step at which they do not agree."""
    outside: int
    """How many of the shadow's values lie outside the knob's bounds: the kernel would refuse them."""
    first_step: int
    last_step: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """All knobs that both decide about; none when they share no step."""

    knobs: tuple[KnobComparison, ...]

    @property
    def agree(self) -> float | None:
        """Share of all pairs that agree."""
        pairs = sum(one.pairs for one in self.knobs)
        return sum(one.agree * one.pairs for one in self.knobs) / pairs if pairs else None


def compare(
    active: Iterable[Mapping[str, Any]], shadow: Iterable[Mapping[str, Any]], bounds: Bounds, within: float = 0.01
) -> Comparison:
    """Hold the decisions of a shadow against those in force.

    Args:
        active: bodies of `controller` events, in order; of several for one step the last counts.
        shadow: the same of the shadow.
        bounds: knob -> lowest and highest value; None leaves a side open.
        within: values agree when they differ by at most this share of the larger.
    """
    ours, theirs = _values(active), _values(shadow)
    knobs = sorted({knob for knob, _ in ours} & {knob for knob, _ in theirs})
    found = []
    for knob in knobs:
        steps = sorted(step for name, step in ours.keys() & theirs.keys() if name == knob)
        if steps:
            triples = [(step, ours[knob, step], theirs[knob, step]) for step in steps]
            found.append(_knob(knob, triples, bounds.get(knob, (None, None)), within))
    return Comparison(tuple(found))


def _values(decisions: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], float]:
    """(knob, step) -> what was decided."""
    out = {}
    for body in decisions:
        step = body.get("at_step")
        for name, value in body.items():
            if name.startswith(PREFIX) and isinstance(step, int) and isinstance(value, int | float):
                out[name.removeprefix(PREFIX), step] = float(value)
    return out


def _knob(
    knob: str, triples: list[tuple[int, float, float]], bounds: tuple[float | None, float | None], within: float
) -> KnobComparison:
    deltas = [abs(ours - theirs) for _, ours, theirs in triples]
    differ = [step for step, ours, theirs in triples if abs(ours - theirs) > within * max(abs(ours), abs(theirs))]
    low, high = bounds
    outside = sum((low is not None and v < low) or (high is not None and v > high) for _, _, v in triples)
    return KnobComparison(
        knob=knob,
        pairs=len(triples),
        agree=1 - len(differ) / len(triples),
        mean_delta=sum(deltas) / len(deltas),
        max_delta=max(deltas),
        first_differs=differ[0] if differ else None,
        outside=outside,
        first_step=triples[0][0],
        last_step=triples[-1][0],
    )
