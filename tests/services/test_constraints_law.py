"""Multipliers: each method against its formula read literally, their limits, and what counts as kept."""

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.services.controllers.constraints import Bound, ConstraintOptimizer, Method

LIMIT, MOST = 0.05, 0.4
METHODS: list[Method] = ["projected", "log", "augmented", "pid", "penalty"]
measurements = st.lists(st.floats(0.0, 0.5), min_size=1, max_size=60)


def reference(method: Method, violations: list[float], start: float) -> list[float]:
    """Coefficients from the whole history of e, one pass a value; gains are the defaults."""

    def mean(n: int) -> float:
        value = violations[0]
        for e in violations[1:n]:
            value = 0.9 * value + 0.1 * e
        return value

    def clamp(value: float) -> float:
        return max(0.0, min(MOST, value))

    dual, integral, out = start, start, []
    for n, e in enumerate(violations, 1):
        integral = clamp(integral + 0.01 * e)
        if method == "log":
            dual = max(1e-6, clamp(max(1e-6, dual) * math.exp(0.01 * mean(n))))
        else:
            dual = clamp(dual + 0.01 * mean(n))
        rise = max(0.0, mean(n) - mean(max(1, n - 10))) if n > 1 else 0.0
        raw = {
            "projected": dual,
            "log": dual,
            "augmented": dual + 0.1 * e,
            "pid": 0.1 * mean(n) + integral + 0.01 * rise,
            "penalty": 0.1 * e,
        }
        out.append(clamp(raw[method]))
    return out


@pytest.mark.parametrize("method", METHODS)
@given(values=measurements, start=st.floats(0.0, MOST), at_most=st.booleans())
@settings(max_examples=50, deadline=None)
def test_matches_its_formula(method: Method, values: list[float], start: float, at_most: bool) -> None:
    """Upper and lower limits; a lower one is violated by what an upper one is not."""
    law = ConstraintOptimizer({"x": Bound(LIMIT, at_most, start, MOST)}, method)
    ours = [law.update({"x": value}, step)["x"] for step, value in enumerate(values)]
    violations = [(value - LIMIT) / LIMIT * (1 if at_most else -1) for value in values]
    assert ours == pytest.approx(reference(method, violations, start), rel=1e-9, abs=1e-12)


def test_constraints_do_not_touch_each_other() -> None:
    """Two at once give what each gives alone."""
    rng = random.Random(3)
    bounds = {"kl": Bound(0.05), "entropy": Bound(0.1, at_most=False)}
    both = ConstraintOptimizer(bounds, "pid")
    alone = {name: ConstraintOptimizer({name: bound}, "pid") for name, bound in bounds.items()}
    for step in range(40):
        measured = {"kl": rng.uniform(0, 0.2), "entropy": rng.uniform(0, 0.2)}
        expected = {name: law.update({name: measured[name]}, step)[name] for name, law in alone.items()}
        assert both.update(measured, step) == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_limit_that_costs_something_is_met(method: Method) -> None:
    """On a plant whose KL falls with its coefficient the multipliers with a memory settle at the limit."""
    law = ConstraintOptimizer({"kl": Bound(LIMIT, initial=0.01)}, method, lagrangian_lr=0.02, mu=0.02)
    kl = 0.0
    for step in range(4000):
        kl = 0.2 / (1.0 + 20.0 * law.update({"kl": kl}, step)["kl"])
    if method == "penalty":
        assert kl == pytest.approx(0.125)  # the fixed point of kl = 0.2 / (1 + 20 mu e)
        assert law.status("kl") == "violated"
    else:
        assert kl == pytest.approx(LIMIT, rel=0.02)
        assert law.coefficients["kl"] == pytest.approx(0.15, rel=0.03)
        assert law.status("kl") == "satisfied"


def test_a_limit_that_keeps_itself_costs_nothing() -> None:
    """Without a violation projected ascent falls to 0 and stays."""
    law = ConstraintOptimizer({"kl": Bound(LIMIT, initial=0.2)}, lagrangian_lr=0.05)
    for step in range(200):
        law.update({"kl": 0.01}, step)
    assert law.coefficients == {"kl": 0.0}


def test_status_in_three_words() -> None:
    """Unknown before anything is measured; infeasible when the most does not do; outliers count past a tenth."""
    law = ConstraintOptimizer({"kl": Bound(LIMIT, most=0.1)}, lagrangian_lr=0.05)
    assert law.status("kl") == "unknown"
    law.update({"kl": 0.1}, 0)
    assert law.status("kl") == "violated"
    for step in range(60):
        law.update({"kl": 0.1}, step)
    assert law.status("kl") == "infeasible"
    for step in range(50):
        law.update({"kl": 0.08 if step % 10 == 0 else 0.02}, step)
    assert law.status("kl") == "satisfied"
    for step in range(50):
        law.update({"kl": 0.08 if step % 8 == 0 else 0.02}, step)
    assert law.status("kl") == "violated"


@pytest.mark.parametrize("method", METHODS)
def test_goes_on_from_a_state(method: Method) -> None:
    """A law that loads the JSON of another's state gives its values ever after."""
    rng = random.Random(11)
    values = [rng.choice([0.0, 0.03, 0.2, math.nan]) for _ in range(60)]
    bounds = {"kl": Bound(LIMIT, most=0.3)}
    whole, first, second = (ConstraintOptimizer(bounds, method) for _ in range(3))
    expected = [whole.update({"kl": value}, step) for step, value in enumerate(values)]
    got = [first.update({"kl": value}, step) for step, value in enumerate(values[:25])]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    got += [second.update({"kl": value}, 25 + step) for step, value in enumerate(values[25:])]
    assert got == expected
    assert second.state_dict() == whole.state_dict()
    assert second.nonfinite == sum(map(math.isnan, values))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("after", ["projected", "pid"])
def test_another_method_goes_on_where_one_stopped(method: Method, after: Method) -> None:
    """A limit that is met exactly asks for no move: the coefficient stays what the memory of the first made it."""
    first = ConstraintOptimizer({"kl": Bound(LIMIT, most=5.0)}, method, lagrangian_lr=0.2, ki=0.2)
    for step in range(20):
        first.update({"kl": 1.3 * LIMIT}, step)
    for step in range(20, 400):
        held = first.update({"kl": LIMIT}, step)["kl"]
    second = ConstraintOptimizer({"kl": Bound(LIMIT, most=5.0)}, after)
    second.load_state_dict(first.state_dict())
    if method not in ("penalty", "log"):  # the one has no memory, the other has hardly left its floor
        assert held > 0.05
    assert second.update({"kl": LIMIT}, 400)["kl"] == pytest.approx(held, abs=1e-6)


@pytest.mark.parametrize(
    "broken", [{}, {"constraints": {"kl": {}}, "step": 1, "nonfinite": 0}, {"constraints": 1, "step": 1}]
)
def test_refuses_a_broken_state(broken: dict[str, object]) -> None:
    """Nothing of it is taken over."""
    law = ConstraintOptimizer({"kl": Bound(LIMIT)})
    law.update({"kl": 0.3}, 1)
    before = law.state_dict()
    with pytest.raises(ValueError, match="state of the constraint controller"):
        law.load_state_dict(broken)
    assert law.state_dict() == before


def test_refuses_parameters() -> None:
    """Limits and ranges that mean nothing, methods that do not exist."""
    with pytest.raises(ValueError, match="greater than 0"):
        Bound(0.0)
    with pytest.raises(ValueError, match="within"):
        Bound(1.0, initial=2.0, most=1.0)
    with pytest.raises(ValueError, match="expected one of projected"):
        ConstraintOptimizer({"x": Bound(1.0)}, "newton")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a constraint must be given"):
        ConstraintOptimizer({})
