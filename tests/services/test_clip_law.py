"""The adaptive clip range: its band, its limits, and a state that another law goes on from."""

import json
import math
import random

import pytest

from midflight.services.controllers.clip import AdaptiveClipper


@pytest.mark.parametrize(
    ("kl", "range_"),
    [(0.0151, 0.2 / 1.5), (0.015, 0.2), (0.01, 0.2), (0.0067, 0.2), (0.0066, 0.3), (0.0, 0.3), (math.nan, 0.2)],
)
def test_one_update(kl: float, range_: float) -> None:
    """Narrower above rate x target, wider below target / rate, the same between, whatever is not finite ignored."""
    assert AdaptiveClipper().update(kl) == pytest.approx(range_)


def test_stays_within_twice_and_half() -> None:
    """However long the KL is on one side."""
    law = AdaptiveClipper(0.1)
    assert [round(law.update(0.0), 6) for _ in range(4)] == [0.15, 0.2, 0.2, 0.2]
    assert [round(law.update(1.0), 6) for _ in range(5)] == [0.133333, 0.088889, 0.059259, 0.05, 0.05]


def test_goes_on_from_a_state() -> None:
    """A law that loads the JSON of another's state gives its values ever after."""
    rng = random.Random(5)
    kls = [rng.choice([0.001, 0.01, 0.1, math.inf]) for _ in range(40)]
    whole, first = AdaptiveClipper(), AdaptiveClipper()
    expected = [whole.update(kl, step) for step, kl in enumerate(kls)]
    got = [first.update(kl, step) for step, kl in enumerate(kls[:17])]
    second = AdaptiveClipper()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    got += [second.update(kl, 17 + step) for step, kl in enumerate(kls[17:])]
    assert got == expected
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    "state", [{}, {"value": "x", "step": 1, "nonfinite": 0}, {"value": math.nan, "step": 1, "nonfinite": 0}]
)
def test_refuses_a_broken_state(state: dict[str, object]) -> None:
    """Nothing of it is taken over."""
    law = AdaptiveClipper()
    law.update(0.0, 3)
    before = law.state_dict()
    with pytest.raises(ValueError, match="state of the clip controller"):
        law.load_state_dict(state)
    assert law.state_dict() == before


@pytest.mark.parametrize("bad", [{"init_value": 0.0}, {"kl_target": math.nan}, {"rate": 1.0}])
def test_refuses_parameters(bad: dict[str, float]) -> None:
    """Ranges, targets and rates that mean nothing."""
    with pytest.raises(ValueError, match="must be"):
        AdaptiveClipper(**bad)
