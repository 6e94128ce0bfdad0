"""Weights of several objectives: each method against its formula, gradients of its loss, states, refusals."""

import json
import math
import random
from typing import get_args

import pytest
import torch

from midflight.services.controllers.objectives import MultiObjectiveOptimizer, ParetoMethod
from midflight.services.controllers.objectives.pareto import hypervolume

METHODS: list[ParetoMethod] = list(get_args(ParetoMethod))
NAMES = ["good", "short", "kind"]
GIVEN = {"good": 1.0, "short": -0.5, "kind": 0.25}
Measured = dict[str, float]


def history(seed: int, n: int) -> list[Measured]:
    """Values that improve slowly, with noise; `short` is a cost."""
    rng = random.Random(seed)
    return [
        {"good": i / n + rng.gauss(0, 0.1), "short": 9 - i / n + rng.gauss(0, 0.5), "kind": rng.random()}
        for i in range(n)
    ]


def grown(method: ParetoMethod, n: int = 30, **options: float) -> MultiObjectiveOptimizer:
    """A law with a past."""
    law = MultiObjectiveOptimizer(NAMES, GIVEN, method, **options)  # type: ignore[arg-type]
    for step, measured in enumerate(history(1, n)):
        law.update(measured, step)
    return law


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_of_its_loss_is_minus_its_weights(method: ParetoMethod, seed: int) -> None:
    """Through tensors, and by finite differences where the method is differentiable; the next weights follow it."""
    law = grown(method, temperature=0.3)
    values = history(40 + seed, 1)[0]
    leaves = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}
    loss = law.compute_pareto_loss(leaves)
    assert loss.item() == pytest.approx(law.compute_pareto_loss(values), rel=1e-12)
    slopes = torch.autograd.grad(loss, [leaves[name] for name in NAMES])
    if method != "pareto_dominance":
        for name, slope in zip(NAMES, slopes, strict=True):
            up, down = (law.compute_pareto_loss({**values, name: values[name] + h}) for h in (1e-6, -1e-6))
            assert slope.item() == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-7)
    signs = [math.copysign(1.0, slope.item()) if slope.item() else 0.0 for slope in slopes]
    assert all(sign in (0.0, wanted) for sign, wanted in zip(signs, (-1.0, 1.0, -1.0), strict=True))
    assert any(signs)


def test_weighted_sum_gives_the_weights_as_they_are() -> None:
    """Also a negative one; the loss is minus the sum."""
    law = grown("weighted_sum")
    assert law.weights == GIVEN
    assert law.compute_pareto_loss({"good": 2.0, "short": 3.0, "kind": 4.0}) == pytest.approx(-2.0 + 1.5 - 1.0)


def test_tchebycheff_is_the_largest_weighted_distance_to_the_ideal() -> None:
    """Read literally, with given ranges as the unit; the weights go to what is furthest behind."""
    ranges = {"good": (0.0, 2.0), "kind": (0.0, 1.0), "short": (0.0, 10.0)}
    law = MultiObjectiveOptimizer(NAMES, GIVEN, "tchebycheff", ranges=ranges, rho=0.05)
    values = {"good": 1.2, "short": 4.0, "kind": 0.9}
    gaps = [1.0 * (2.002 - 1.2) / 2, 0.5 * (4.0 - 0.0 + 0.01) / 10, 0.25 * (1.001 - 0.9)]
    assert law.compute_pareto_loss(values) == pytest.approx(max(gaps) + 0.05 * sum(gaps), rel=1e-12)
    weights = law.update(values, 0)
    pull = {"good": 1.05 * 1.0 / 2, "short": -0.05 * 0.5 / 10, "kind": 0.05 * 0.25 / 1}
    total = sum(map(abs, pull.values()))
    assert weights == pytest.approx({name: x / total * 1.75 for name, x in pull.items()}, rel=1e-12)


def test_without_ranges_the_ideal_is_the_best_seen_and_a_little() -> None:
    """A point that is best in everything is still short of it."""
    law = MultiObjectiveOptimizer(["a", "b"], pareto_method="tchebycheff", rho=0.0)
    for step, (a, b) in enumerate([(0.0, 4.0), (1.0, 2.0), (2.0, 0.0)]):
        law.update({"a": a, "b": b}, step)
    deviation = {"a": 1.0, "b": 2.0}
    gap = {"a": (2.0 + 0.002 - 2.0) / deviation["a"], "b": (4.0 + 0.004 - 4.0) / deviation["b"]}
    assert law.compute_pareto_loss({"a": 2.0, "b": 4.0}) == pytest.approx(max(gap.values()), rel=1e-9)


def test_a_smooth_maximum_bounds_the_hard_one() -> None:
    """max <= t log sum exp <= max + t log n, and it becomes the maximum as t falls."""
    values = {"good": 0.3, "short": 8.0, "kind": 0.2}
    hard = grown("tchebycheff").compute_pareto_loss(values)
    for temperature in (1.0, 0.1, 0.01):
        smooth = grown("tchebycheff", temperature=temperature).compute_pareto_loss(values)
        assert hard <= smooth <= hard + temperature * math.log(3)


def test_pareto_dominance_pulls_harder_on_the_front() -> None:
    """exp(-rank + diversity_weight c): an extreme of the front has c = 1, a dominated point a lower rank's factor."""
    law = MultiObjectiveOptimizer(["a", "b"], pareto_method="pareto_dominance", ranges={"a": (0, 1), "b": (0, 1)})
    for step, (a, b) in enumerate([(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]):
        law.update_pareto_archive({"a": a, "b": b}, step)
    assert law.compute_pareto_loss({"a": 0.0, "b": 1.2}) == pytest.approx(-math.exp(0.1) * 1.2)
    worse = law.compute_pareto_loss({"a": 0.3, "b": 0.3})
    gap = (0.5 - 0.0) / 1 + (0.5 - 0.0) / 1
    assert worse == pytest.approx(-math.exp(-1 + 0.1 * gap / (gap + 1)) * 0.6)


def test_hypervolume_is_what_a_point_adds() -> None:
    """HV(archive and f) - HV(archive), in units of the ranges; off the front, the distance to what dominates it."""
    ranges = {"a": (0.0, 2.0), "b": (0.0, 1.0)}
    law = MultiObjectiveOptimizer(["a", "b"], pareto_method="hypervolume", ranges=ranges)
    points = [(0.4, 0.9), (1.0, 0.5), (1.8, 0.2)]
    for step, (a, b) in enumerate(points):
        law.update_pareto_archive({"a": a, "b": b}, step)
    scaled, reference = [(a / 2, b) for a, b in points], (-0.1, -0.1)
    gain = hypervolume([*scaled, (0.6, 0.6)], reference) - hypervolume(scaled, reference)
    assert law.compute_pareto_loss({"a": 1.2, "b": 0.6}) == pytest.approx(-gain, rel=1e-12)
    assert law.compute_pareto_loss({"a": 0.9, "b": 0.5}) == pytest.approx((1.0 - 0.9) / 2)
    way = law.update({"a": 0.8, "b": 0.4}, 4)
    assert way["a"] / way["b"] == pytest.approx((0.1 / 2) / 0.1, rel=1e-9)  # towards (1.0, 0.5), per unit of each


def test_the_reference_point_is_fixed_once() -> None:
    """Below the worst of the first updates, and never moved, or volumes could not be compared."""
    law = MultiObjectiveOptimizer(["a"], pareto_method="hypervolume")
    for step in range(9):
        law.update({"a": float(step)}, step)
        assert law.reference is None
    law.update({"a": 9.0}, 9)
    assert law.reference == (-0.9,)
    law.update({"a": -50.0}, 10)
    assert law.reference == (-0.9,)


@pytest.mark.parametrize("method", METHODS)
def test_the_sum_of_the_weights_stays(method: ParetoMethod) -> None:
    """A change of method, or of what is behind, is no change of the step's size."""
    law = MultiObjectiveOptimizer(NAMES, GIVEN, method)
    for step, measured in enumerate(history(3, 40)):
        weights = law.update(measured, step)
        assert sum(map(abs, weights.values())) == pytest.approx(1.75)
        assert weights["short"] <= 0 <= min(weights["good"], weights["kind"])


def test_the_front_is_given_back_by_name() -> None:
    """In the objectives' own signs, with the step; every solution in it is on the front of all."""
    law = grown("weighted_sum")
    seen = history(1, 30)
    found = law.get_pareto_front()
    assert found
    for solution in found:
        measured = seen[int(solution["step"])]
        assert {name: solution[name] for name in NAMES} == pytest.approx(measured)
        assert not any(
            m["good"] >= measured["good"] and m["short"] <= measured["short"] and m["kind"] > measured["kind"]
            for m in seen
        )


@pytest.mark.parametrize("method", METHODS)
def test_goes_on_from_a_state(method: ParetoMethod) -> None:
    """A law that loads the JSON of another's state gives its weights ever after, NaN and all."""
    values = history(7, 40)
    values[20]["kind"] = math.nan
    whole, first, second = (MultiObjectiveOptimizer(NAMES, GIVEN, method) for _ in range(3))
    expected = [whole.update(measured, step) for step, measured in enumerate(values)]
    got = [first.update(measured, step) for step, measured in enumerate(values[:15])]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    got += [second.update(measured, 15 + step) for step, measured in enumerate(values[15:])]
    assert got == expected
    assert second.state_dict() == whole.state_dict()
    assert second.nonfinite == 1
    assert len(json.dumps(MultiObjectiveOptimizer.brief(second))) <= len(json.dumps(second.state_dict()))


@pytest.mark.parametrize(
    "broken", [{}, {"seen": {}, "archive": [[[1.0], 2]], "reference": None, "weights": {}, "step": 1, "nonfinite": 0}]
)
def test_refuses_a_broken_state(broken: dict[str, object]) -> None:
    """Nothing of it is taken over, nor of the state of other objectives."""
    law = grown("hypervolume")
    before = law.state_dict()
    other = MultiObjectiveOptimizer(["else"]).state_dict()
    for state in (broken, other):
        with pytest.raises(ValueError, match="state of the objectives controller"):
            law.load_state_dict(state)
    assert law.state_dict() == before


def test_doubts_a_penalty_that_is_negated_twice() -> None:
    """A negative weight on values that are never positive rewards what it should punish."""
    law = MultiObjectiveOptimizer(["reward", "kl"], {"kl": -0.1})
    law.update({"reward": 1.0, "kl": -0.3}, 0)
    assert law.doubts == ["kl"]
    law.update({"reward": 1.0, "kl": 0.3}, 1)
    assert law.doubts == []


def test_refuses_parameters() -> None:
    """Names that are none, methods that do not exist, ranges upside down; `method` is an alias."""
    assert MultiObjectiveOptimizer(["a"], method="hypervolume").pareto_method == "hypervolume"
    for options, why in (
        ({"objectives": []}, "at least one"),
        ({"objectives": ["a", "a"]}, "each once"),
        ({"objectives": ["a"], "objective_weights": {"b": 1.0}}, "names 'b'"),
        ({"objectives": ["a"], "objective_weights": {"a": 0.0}}, "not 0"),
        ({"objectives": ["a"], "pareto_method": "nash"}, "expected one of weighted_sum"),
        ({"objectives": ["a"], "ranges": {"a": (1.0, 1.0)}}, "low must be less"),
        ({"objectives": ["a"], "rho": -1.0}, "at least 0"),
    ):
        with pytest.raises(ValueError, match=why):
            MultiObjectiveOptimizer(**options)


@pytest.mark.parametrize("method", METHODS)
def test_rounding_is_no_variation(method: ParetoMethod) -> None:
    """A constant whose mean wavers in its last digits is no more important, nor less, than one that does not."""
    weights = []
    for waver in (0.0, 1e-17):
        law = MultiObjectiveOptimizer(["fixed", "exact"], {}, method)
        for step in range(20):
            law.update({"fixed": 0.1 + waver * (step % 3), "exact": step / 20}, step)
        weights.append(law.weights)
    assert weights[0] == pytest.approx(weights[1], rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_state_knows_its_names_and_directions(method: ParetoMethod) -> None:
    """In another order it means the same; where an objective is turned round, so are the points on the front."""
    saved = json.loads(json.dumps(grown(method).state_dict()))
    other = MultiObjectiveOptimizer(NAMES[::-1], GIVEN, method)
    other.load_state_dict(saved)
    plain = grown(method)
    by_step = {int(point["step"]): point for point in other.get_pareto_front()}
    assert by_step == {int(point["step"]): point for point in plain.get_pareto_front()}
    measured = history(9, 1)[0]
    assert other.update(measured, 31) == pytest.approx(plain.update(measured, 31), rel=1e-9)
    turned = MultiObjectiveOptimizer(NAMES, {**GIVEN, "short": 0.5}, method)
    turned.load_state_dict(saved)
    assert turned.weights["short"] > 0
    assert all(point["short"] > 5 for point in turned.get_pareto_front())  # a cost of about 9, whichever way it counts


@pytest.mark.parametrize("method", METHODS)
def test_before_anything_is_known(method: ParetoMethod) -> None:
    """A loss of the first values is a number; what is missing or beyond all numbers moves nothing and is counted."""
    law = MultiObjectiveOptimizer(NAMES, GIVEN, method)
    assert math.isfinite(law.compute_pareto_loss({"good": 1.0, "short": 2.0, "kind": 3.0}))
    for measured in ({"good": 1.0}, {"good": 1e308, "short": 0.0, "kind": 0.0}):
        assert law.update(measured, 0) == GIVEN
    assert law.nonfinite == 2


@pytest.mark.parametrize(
    "change",
    [
        {"weights": {"good": math.nan, "short": 1.0, "kind": 1.0}},
        {"seen": {"good": {"n": "x"}}},
        {"step": math.inf},
        {"signs": {"good": 1.0}},
        {"archive": [[[1.0, math.nan, 1.0], 1]]},
    ],
)
def test_refuses_a_damaged_state(change: dict[str, object]) -> None:
    """By a ValueError, with nothing changed."""
    law = grown("hypervolume")
    before = law.state_dict()
    with pytest.raises(ValueError, match="state of the objectives controller"):
        law.load_state_dict({**before, **change})
    assert law.state_dict() == before
