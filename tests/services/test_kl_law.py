"""The KL control law against an independent slow reference and the equilibria stated in the design."""

import json
import math
from fractions import Fraction

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.services.controllers.kl import AdaptiveKLController, ControllerType, ScheduleType

TYPES: list[ControllerType] = ["exponential", "linear", "pid", "schedule"]
SCHEDULES: list[ScheduleType] = ["cosine", "linear", "exponential", "warmup_cosine"]
kls = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60)


def reference(kind: str, kls: list[float]) -> list[float]:
    """Coefficients by the formulas read literally: exact rationals, the PID from its whole error history."""
    low, high, target = Fraction(0.001), Fraction(10.0), Fraction(0.01)
    coef, errors, out = Fraction(0.2), [], []
    for kl in map(Fraction, kls):
        if kind == "exponential":
            coef *= Fraction(1.03) if kl > target else Fraction(0.99) if kl < target else 1
        elif kind == "linear":
            coef *= 1 + Fraction(0.5) * max(Fraction(-1), min(Fraction(1), kl / target - 1))
        else:
            errors.append(max(Fraction(-1), min(Fraction(5), (kl - target) / target)))
            e, e1, e2 = (errors[max(len(errors) - k, 0)] for k in (1, 2, 3))
            coef += Fraction(0.1) * (e - e1) + Fraction(0.01) * e + Fraction(0.001) * (e - 2 * e1 + e2)
        coef = max(low, min(high, coef)).limit_denominator(10**40)
        out.append(float(coef))
    return out


@pytest.mark.parametrize("kind", ["exponential", "linear", "pid"])
@given(kls=kls)
@settings(max_examples=60, deadline=None)
def test_matches_reference(kind: ControllerType, kls: list[float]) -> None:
    """Each feedback law equals its formula evaluated in exact arithmetic."""
    law = AdaptiveKLController(controller_type=kind)
    ours = [law.update(kl, i) for i, kl in enumerate(kls)]
    assert ours == pytest.approx(reference(kind, kls), rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("kind", ["exponential", "linear", "pid"])
@given(kls=kls)
@settings(max_examples=30, deadline=None)
def test_smoothing_is_a_mean_in_front(kind: ControllerType, kls: list[float]) -> None:
    """With smoothing a law says what it would without, had it been told the exponential mean; so after a restart."""
    smooth, plain = (
        AdaptiveKLController(controller_type=kind, smoothing=0.7),
        AdaptiveKLController(controller_type=kind),
    )
    mean = kls[0]
    for step, kl in enumerate(kls):
        mean = 0.7 * mean + 0.3 * kl if step else kl
        assert smooth.update(kl, step) == pytest.approx(plain.update(mean, step), rel=1e-9, abs=1e-12)
        again = AdaptiveKLController(controller_type=kind, smoothing=0.7)
        again.load_state_dict(smooth.state_dict())
        smooth = again


@given(kls=kls)
@settings(deadline=None)
def test_pid_equals_positional_form_while_unsaturated(kls: list[float]) -> None:
    """coef0 + kp (e - e_first) + ki sum(e) + kd (e - e_previous), as long as no clamp was active."""
    law = AdaptiveKLController(initial_coef=500.0, max_coef=1000.0, controller_type="pid")
    errors = [max(-1.0, min(5.0, (kl - 0.01) / 0.01)) for kl in kls]
    got = [law.update(kl, i) for i, kl in enumerate(kls)][-1]
    previous = errors[-2] if len(errors) > 1 else errors[-1]
    positional = 500.0 + 0.1 * (errors[-1] - errors[0]) + 0.01 * sum(errors) + 0.001 * (errors[-1] - previous)
    assert got == pytest.approx(positional, abs=1e-9)


def test_a_pid_goes_on_from_another_law_without_a_kick() -> None:
    """At the target nothing moves, whatever the errors were when a PID last saw them."""
    pid = AdaptiveKLController(controller_type="pid", initial_coef=1.0)
    pid.update(0.5, 1)
    other = AdaptiveKLController(controller_type="exponential")
    other.load_state_dict(pid.state_dict())
    for step in range(2, 6):
        held = other.update(0.01, step)
    pid.load_state_dict(other.state_dict())
    assert pid.update(0.01, 6) == held


def test_first_pid_update_has_no_kick() -> None:
    """Only the integral term acts on the first update."""
    law = AdaptiveKLController(controller_type="pid")
    assert law.update(0.02, 0) == pytest.approx(0.2 + 0.01 * 1.0)


def test_pid_leaves_saturation_at_once() -> None:
    """After 10,000 updates at the upper clamp the coefficient falls on the first low KL: no wind-up."""
    law = AdaptiveKLController(controller_type="pid")
    for step in range(10_000):
        law.update(1.0, step)
    assert law.coef == 10.0
    assert law.update(0.0, 10_000) < 10.0


@pytest.mark.parametrize(("kl", "limit", "updates"), [(1.0, 10.0, 133), (0.0, 0.001, 528)])
def test_exponential_times_to_the_clamps(kl: float, limit: float, updates: int) -> None:
    """0.2 -> 10 takes 133 updates and 0.2 -> 0.001 takes 528."""
    law = AdaptiveKLController()
    path = [law.update(kl, step) for step in range(updates)]
    assert path[-1] == limit
    assert path[-2] != limit


def test_exponential_equilibrium_share() -> None:
    """The coefficient rests when KL exceeds the target in 25.4 % of the updates."""
    share = math.log(1 / 0.99) / (math.log(1.03) + math.log(1 / 0.99))
    assert share == pytest.approx(0.254, abs=5e-4)
    law, high = AdaptiveKLController(), round(share * 10_000)
    for step in range(10_000):
        law.update(0.02 if step * high % 10_000 < high else 0.0, step)
    assert law.coef == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("kind", ["exponential", "linear", "pid"])
def test_on_target_nothing_moves(kind: ControllerType) -> None:
    """A KL equal to the target leaves the coefficient bit for bit."""
    law = AdaptiveKLController(controller_type=kind)
    assert [law.update(0.01, step) for step in range(5)] == [0.2] * 5


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedule_ends_and_shape(kind: ScheduleType) -> None:
    """Schedules go from the initial to the minimal coefficient, pass the stated middle and then stay."""
    law = AdaptiveKLController(controller_type="schedule", schedule_type=kind)
    path = [law.update(0.5, step) for step in range(1501)]
    middle = {
        "cosine": 0.001 + 0.199 / 2,
        "linear": 0.2 - 0.199 / 2,
        "exponential": math.sqrt(0.2 * 0.001),
        "warmup_cosine": 0.001 + 0.199 * (1 + math.cos(math.pi * 4 / 9)) / 2,
    }
    assert path[500] == pytest.approx(middle[kind], rel=1e-12)
    assert path[1000] == pytest.approx(0.001, abs=1e-15)
    assert path[1500] == path[1000]
    peak = 100 if kind == "warmup_cosine" else 0
    assert path[peak] == pytest.approx(0.2, rel=1e-12)
    assert path[peak:1001] == sorted(path[peak:1001], reverse=True)
    if peak:
        assert path[0] == 0.001
        assert path[50] == pytest.approx(0.1, rel=1e-12)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_kl_keeps_the_coefficient(kind: ControllerType, bad: float) -> None:
    """A non-finite KL is counted and leaves no other trace in the state."""
    law = AdaptiveKLController(controller_type=kind)
    law.update(0.03, 1)
    before = law.state_dict()
    assert law.update(bad, 2) == law.coef
    assert law.state_dict() == {**before, "nonfinite": 1}


@pytest.mark.parametrize("kind", TYPES)
@given(kls=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=40), cut=st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_state_round_trip_is_bitwise(kind: ControllerType, kls: list[float], cut: int) -> None:
    """Saved at any point through msgpack and JSON, the copy goes on bit for bit, and always within its range."""
    law = AdaptiveKLController(controller_type=kind)
    for step, kl in enumerate(kls[:cut]):
        law.update(kl, step)
    copy = AdaptiveKLController(controller_type=kind)
    copy.load_state_dict(json.loads(json.dumps(msgpack.unpackb(msgpack.packb(law.state_dict())))))
    assert copy.state_dict() == law.state_dict()
    for step, kl in enumerate(kls[cut:], start=cut):
        assert law.update(kl, step) == copy.update(kl, step)
        assert 0.001 <= law.coef <= 10.0
    assert copy.state_dict() == law.state_dict()


def test_history_is_bounded() -> None:
    """The ring keeps the latest hundred entries only."""
    law = AdaptiveKLController()
    for step in range(1000):
        law.update(0.1, step)
    assert [row[0] for row in law.history] == list(range(900, 1000))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("initial_coef", 20.0),
        ("initial_coef", math.nan),
        ("target_kl", 0.0),
        ("target_kl", -1.0),
        ("controller_type", "pidd"),
        ("schedule_type", "step"),
        ("schedule_steps", 0),
        ("exp_decay", 1.5),
        ("smoothing", 1.0),
        ("max_coef", math.inf),
    ],
)
def test_bad_parameters_are_refused_by_name(key: str, value: object) -> None:
    """The error names the parameter."""
    with pytest.raises(ValueError, match=key):
        AdaptiveKLController(**{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"coef": math.nan},
        {"coef": "x"},
        {"e1": None},
        {"history": 3},
        {"history": [[math.inf, 0.0, 0.0]]},
        {"step": None},
    ],
)
def test_bad_state_is_refused_and_changes_nothing(change: dict[str, object]) -> None:
    """A damaged state raises ValueError and leaves the controller as it was."""
    law = AdaptiveKLController()
    law.update(0.3, 1)
    before = law.state_dict()
    with pytest.raises(ValueError, match="state of the KL controller"):
        law.load_state_dict({**before, **change})
    assert law.state_dict() == before
