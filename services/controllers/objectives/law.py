"""Several objectives at once: a pure state machine over floats (feature E3, algorithms 5).

`update` takes what was measured of each objective and says how much each is to count now: weights w that a learner
multiplies the named rewards by, -w being the gradient of a loss at the measured values f. Every objective is maximised,
in units of its scale s (its range if one is given, else its running standard deviation, or 1 in a weighted sum); one
with a negative weight is minimised. The methods are those of `methods`; of the given weights hypervolume knows only the
signs.

Weights are rescaled to the sum of the given ones, so that a change of method is no change of step size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from .archive import Archive
from .methods import METHODS, ParetoMethod, View
from .pareto import Point, crowding
from .scale import Running

BEYOND = 1e-3
"""The ideal point lies this share of the range beyond the best that was seen."""
BELOW = 0.1
"""The reference point lies this share of the range below the worst."""
BRIEF = 20
"""Points of the archive that a successor goes on from."""
MOST_VOLUME = 5
"""Objectives that an exact hypervolume is affordable for."""
MOST = 1e100
"""Values beyond it would overflow in a square."""
SETTLE = 10
"""Updates after which the reference point is fixed for good, out of what was seen."""


@dataclass(slots=True)
class MultiObjectiveOptimizer:
    """Scalarises objectives; see the module for the methods.

    objectives: names. objective_weights: 1 where omitted; applied as given. ranges: name to (low, high), the scale of
    an objective in place of its running statistics. rho, temperature: of tchebycheff. `method` is an alias of
    `pareto_method`. Raises ValueError at construction when a parameter makes no sense. Measurements of which one is
    missing or not finite move nothing and are counted in `nonfinite`.
    """

    objectives: Sequence[str]
    objective_weights: Mapping[str, float] = field(default_factory=dict)
    pareto_method: ParetoMethod = "weighted_sum"
    diversity_weight: float = 0.1
    archive_size: int = 100
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rho: float = 0.05
    temperature: float = 0.0
    method: ParetoMethod | None = None
    step: int = field(init=False, default=0)
    nonfinite: int = field(init=False, default=0)
    reference: Point | None = field(init=False, default=None)
    archive: Archive = field(init=False)
    _given: dict[str, float] = field(init=False, repr=False)
    _seen: dict[str, Running] = field(init=False, repr=False)
    _weights: dict[str, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.pareto_method = self.method or self.pareto_method
        if self.pareto_method not in METHODS:
            raise ValueError(f"pareto_method: expected one of {', '.join(METHODS)} (got {self.pareto_method!r})")
        names = list(self.objectives)
        for kind, given in (("objective_weights", self.objective_weights), ("ranges", self.ranges)):
            if unknown := sorted(set(given) - set(names)):
                raise ValueError(f"{kind} names {unknown[0]!r}, which is no objective of {', '.join(names)}")
        self._given = {name: float(self.objective_weights.get(name, 1.0)) for name in names}
        if not names or len(set(names)) < len(names):
            raise ValueError("objectives: name at least one, each once")
        if not all(abs(w) < MOST for w in self._given.values()) or not any(self._given.values()):
            raise ValueError("objective_weights must be finite, and one of them not 0")
        if any(not -MOST < low < high < MOST or high - low < 1 / MOST for low, high in self.ranges.values()):
            raise ValueError("ranges: low must be less than high, and both finite")
        if self.pareto_method == "hypervolume" and len(names) > MOST_VOLUME:
            raise ValueError(f"hypervolume takes at most {MOST_VOLUME} objectives, got {len(names)}")
        if self.archive_size < 2 * len(names):
            raise ValueError(
                f"archive_size must be at least {2 * len(names)}, two an objective (got {self.archive_size})"
            )
        if not all(math.isfinite(x) and x >= 0 for x in (self.diversity_weight, self.rho, self.temperature)):
            raise ValueError("diversity_weight, rho and temperature must be finite and at least 0")
        self.archive = Archive(self.archive_size)
        self._seen = {name: Running() for name in names}
        self._weights = dict(self._given)

    @property
    def weights(self) -> dict[str, float]:
        """How much each objective counts now."""
        return dict(self._weights)

    @property
    def doubts(self) -> list[str]:
        """Objectives with a negative weight that were never above 0: a penalty passed as -x, rewarded after all?"""
        return [n for n, w in self._given.items() if w < 0 and self._seen[n].n and self._seen[n].high <= 0]

    def update(self, measured: Mapping[str, float], step: int) -> dict[str, float]:
        """Take what was measured at `step`, by objective; return the weights for the next step."""
        self.step = step
        if not all(abs(measured.get(name, math.nan)) < MOST for name in self._seen):
            self.nonfinite += 1
            return self.weights
        for name, running in self._seen.items():
            running.add(measured[name])
        point = self._point(measured)
        if self.reference is None and self._seen[self.objectives[0]].n >= SETTLE:
            self.reference = self._below()
        _, pull = METHODS[self.pareto_method](self._seen_from(point))
        self.archive.add(point, step)
        self._weights = self._raised(pull)
        return self.weights

    def brief(self) -> dict[str, object]:
        """The state with the BRIEF least crowded points of the archive only."""
        points = self.archive.points
        order = sorted(range(len(points)), key=crowding(points).__getitem__, reverse=True) if points else []
        kept = [self.archive.entries[i] for i in sorted(order[:BRIEF])]
        return self.state_dict() | {"archive": kept}

    def state_dict(self) -> dict[str, object]:
        """The state as plain values; a round trip through JSON is exact."""
        return {
            "signs": {name: self._sign(name) for name in self._seen},
            "seen": {name: asdict(running) for name, running in self._seen.items() if running.n},
            "archive": list(self.archive.entries),
            "reference": self.reference,
            "weights": self.weights,
            "step": self.step,
            "nonfinite": self.nonfinite,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from `state_dict()` of the same objectives, also under another method.

        Raises ValueError, changing nothing.
        """
        try:
            signs = {str(n): float(x) for n, x in cast("dict[str, float]", state["signs"]).items()}
            seen = {name: Running.of(one) for name, one in cast("dict[str, Any]", state["seen"]).items()}
            pairs = cast("list[tuple[Point, int]]", state["archive"])
            entries = [(self._turned(point, signs), int(tag)) for point, tag in pairs]
            below = cast("Point | None", state["reference"])
            reference = None if below is None or not self._as_before(signs) else self._turned(below, signs)
            weights = {name: float(x) for name, x in cast("dict[str, float]", state["weights"]).items()}
            step, nonfinite = int(cast(int, state["step"])), int(cast(int, state["nonfinite"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"state of the objectives controller is incomplete or mistyped: {error!r}") from error
        if set(weights) != set(self._seen) or not set(seen) <= set(self._seen):
            raise ValueError(f"state of the objectives controller is of {', '.join(sorted(weights))}")
        if not all(map(math.isfinite, weights.values())):
            raise ValueError("state of the objectives controller holds a weight that is not finite")
        self._seen = {name: seen.get(name, Running()) for name in self._seen}
        self.archive.load(entries)
        self.reference, self.step, self.nonfinite = reference, step, nonfinite
        self._weights = weights if self._as_before(signs) else dict(self._given)

    def _as_before(self, signs: Mapping[str, float]) -> bool:
        return all(signs[name] == self._sign(name) for name in self._seen)

    def _turned(self, point: Sequence[float], signs: Mapping[str, float]) -> Point:
        """A saved point in our order and our directions."""
        saved = dict(zip(signs, map(float, point), strict=True))
        if set(saved) != set(self._given) or not all(map(math.isfinite, saved.values())):
            raise ValueError(f"{list(point)} is no point of {', '.join(self._given)}")
        return tuple(self._sign(name) * signs[name] * saved[name] for name in self._seen)

    def compute_pareto_loss(self, values: Mapping[str, Any]) -> Any:
        """The loss at `values` (floats, or tensors of one element, through which a gradient flows), to be minimised.

        Its gradient is minus the weights of the method there, before their rescaling; nothing is remembered.
        """
        floats = {name: float(getattr(values[name], "detach", lambda n=name: values[n])()) for name in self._seen}
        point = self._point(floats)
        loss, pull = METHODS[self.pareto_method](self._seen_from(point))
        slopes = dict(zip(self._seen, pull, strict=True))
        linear = sum(self._sign(n) * slopes[n] / self._scale(n) * (values[n] - floats[n]) for n in self._seen)
        return loss - linear

    def update_pareto_archive(self, values: Mapping[str, float], step: int = 0) -> bool:
        """Offer a solution to the archive; whether it was taken."""
        return self.archive.add(self._point(values), step)

    def get_pareto_front(self) -> list[dict[str, float]]:
        """Every solution in the archive, by objective, with the `step` it was offered at."""
        return [
            {**{n: self._sign(n) * x for n, x in zip(self._seen, point, strict=True)}, "step": tag}
            for point, tag in self.archive.entries
        ]

    def _sign(self, name: str) -> float:
        return -1.0 if self._given[name] < 0 else 1.0

    def _point(self, measured: Mapping[str, float]) -> Point:
        """In the direction of more is better, in the objectives' own units, so that old points stay comparable.

        To 12 digits: means of equal rewards differ in their last ones, and would dominate one another by that.
        """
        return tuple(self._sign(name) * float(f"{measured[name]:.12g}") for name in self._seen)

    def _scale(self, name: str) -> float:
        if name in self.ranges:
            return self.ranges[name][1] - self.ranges[name][0]
        varies = self.pareto_method != "weighted_sum" and self._seen[name].varies
        return self._seen[name].deviation if varies else 1.0

    def _bounds(self, name: str) -> tuple[float, float]:
        """Lowest and highest of an objective, more being better."""
        seen = self._seen[name]
        known = (seen.low, seen.high if seen.varies else seen.low) if seen.n else (0.0, 0.0)
        low, high = self.ranges.get(name, known)
        return (-high, -low) if self._sign(name) < 0 else (low, high)

    def _below(self) -> Point:
        bounds = [self._bounds(name) for name in self._seen]
        return tuple(low - BELOW * ((high - low) or 1.0) for low, high in bounds)

    def _seen_from(self, point: Point) -> View:
        """The point, the archive and the ideal in units of the scales."""
        scales = [self._scale(name) for name in self._seen]

        def scaled(point: Sequence[float]) -> Point:
            return tuple(x / scale for x, scale in zip(point, scales, strict=True))

        ideal = []
        for name, value in zip(self._seen, point, strict=True):
            low, high = self._bounds(name)
            ideal.append(max(high, value) + BEYOND * (high - low))
        return View(
            point=scaled(point),
            weights=tuple(map(abs, self._given.values())),
            ideal=scaled(ideal),
            front=[scaled(p) for p in self.archive.points],
            reference=scaled(self.reference or self._below()),
            rho=self.rho,
            temperature=self.temperature,
            diversity_weight=self.diversity_weight,
        )

    def _raised(self, pull: Sequence[float]) -> dict[str, float]:
        """Signed, per unit of the objective, with the sum of the given weights."""
        per_unit = [self._sign(n) * x / self._scale(n) for n, x in zip(self._seen, pull, strict=True)]
        total, wanted = sum(map(abs, per_unit)), sum(map(abs, self._given.values()))
        return {n: x * wanted / total for n, x in zip(self._seen, per_unit, strict=True)} if total else self.weights
