"""The law of the concurrency controller, alone and against an engine whose cache fills with what runs."""

import json
import math
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from midflight.services.controllers.concurrency.law import AdaptiveConcurrency, Load

SLOTS = 256
LOADS = st.builds(
    Load,
    active=st.floats(0, 512),
    queued=st.floats(0, 512),
    kv_use=st.floats(0, 1.5) | st.just(math.nan),
    slots=st.integers(1, 512).map(float),
    limit=st.integers(1, 512).map(float),
)


def load(active: float, queued: float = 0, kv_use: float = 0.5, slots: float = SLOTS, limit: float = 100) -> Load:
    """A load."""
    return Load(active, queued, kv_use, slots, limit)


@given(st.lists(LOADS, max_size=60), st.integers(1, 50), st.integers(0, 400), st.integers(1, 64), st.floats(0.1, 0.95))
@settings(deadline=None)
def test_every_move_is_small_up_or_a_part_down(
    loads: list[Load], least: int, room: int, increase: int, decrease: float
) -> None:
    """Within its bounds and the engine's, whatever it is told; up by `increase` at most, down by `decrease` at most."""
    law = AdaptiveConcurrency(least, least + room, increase, decrease)
    for one in loads:
        before, after = law.value, law.update(one)
        if math.isnan(one.kv_use):
            assert after == before
            continue
        ceiling = max(least, min(least + room, int(one.slots)))
        assert least <= after <= ceiling
        before = min(max(before or int(one.limit), least), ceiling)
        assert after <= before + increase
        assert after >= max(least, math.floor(before * decrease))
        if one.kv_use > law.kv_high:
            assert after <= before
    assert law.nonfinite == sum(math.isnan(one.kv_use) for one in loads)


def test_what_moves_it() -> None:
    """Up by two while there is room and the limit binds, down to 0.7 when cache or queue are full, else not at all."""
    for told, moved in [
        (load(100, kv_use=0.5), 102),
        (load(80, kv_use=0.5), 100),  # 80 of 100 run: the limit keeps nothing from running
        (load(100, kv_use=0.8), 100),
        (load(100, kv_use=0.95), 70),
        (load(100, queued=5), 100),
        (load(100, queued=11), 70),
        (load(130, kv_use=0.95), 100),  # more runs than may: an earlier fall has yet to show
        (load(100, slots=64), 64),
        (load(100, limit=30), 30),
    ]:
        assert AdaptiveConcurrency().update(told) == moved, told


class Engine:
    """Requests that hold `each` of the cache on average; what runs beyond a lowered limit ends a tenth a turn."""

    def __init__(self, each: float, noise: float, seed: int, demand: int = 10_000) -> None:
        self.each, self.noise, self.demand = each, noise, demand
        self.running, self.rng = 0.0, random.Random(seed)

    def turn(self, limit: int) -> Load:
        """Run what may run; what does not fit into the cache is queued."""
        wanted = min(limit, SLOTS, self.demand)
        self.running = wanted if wanted >= self.running else max(wanted, 0.9 * self.running)
        full = self.running * self.each * self.rng.uniform(1 - self.noise, 1 + self.noise)
        queued = max(0.0, full - 1) / self.each
        return Load(self.running, queued, min(full, 1.0), SLOTS, limit)


@given(st.floats(0.006, 0.2), st.integers(0, 2**30), st.integers(1, SLOTS))
@settings(max_examples=60, deadline=None)
def test_it_settles_where_the_cache_is_nearly_full(each: float, seed: int, start: int) -> None:
    """From anywhere, with noise a third of the band's width, it ends between the marks and stays there."""
    law, engine, limit = AdaptiveConcurrency(increase=1, kv_low=0.6), Engine(each, 0.05, seed), start
    trail = [limit := law.update(engine.turn(limit)) for _ in range(700)]
    settled = trail[400:]
    assert max(settled) * each < 0.95
    assert min(settled) * each > 0.6 * 0.7
    assert len(set(settled)) <= 3, sorted(set(settled))  # a step of 1 is a large part of a small limit


@given(st.floats(0.006, 0.02), st.integers(0, 2**30))
@example(0.01953125, 2400605)
@settings(max_examples=30, deadline=None)
def test_with_much_noise_it_swings_within_a_band(each: float, seed: int) -> None:
    """A cache that seems a quarter fuller or emptier at random: never a rise above what fits, never far below."""
    law, engine, limit = AdaptiveConcurrency(), Engine(each, 0.25, seed), SLOTS
    trail = [limit := law.update(engine.turn(limit)) for _ in range(1500)][300:]
    fits = 1 / each
    assert max(trail) < fits + law.increase  # what seems 0.75 full is full at most, and then rises once
    assert min(trail) >= 0.7 * 0.7 * 0.9 / 1.25 * fits - 2


def test_without_work_it_does_not_wander() -> None:
    """With forty requests in all the limit stays where it is, and is not raised to what was never tried."""
    law, engine, limit = AdaptiveConcurrency(), Engine(0.004, 0.1, 3, demand=40), 100
    assert {limit := law.update(engine.turn(limit)) for _ in range(200)} == {100}


def test_goes_on_from_a_state() -> None:
    """A law that loads the JSON of another's state gives its values ever after."""
    rng = random.Random(5)
    told = [
        load(rng.choice([50, 100, 200]), rng.choice([0, 0, 30]), rng.choice([0.3, 0.8, 0.95, math.inf]))
        for _ in range(60)
    ]
    whole, first, second = AdaptiveConcurrency(), AdaptiveConcurrency(), AdaptiveConcurrency()
    expected = [whole.update(one, step) for step, one in enumerate(told)]
    got = [first.update(one, step) for step, one in enumerate(told[:23])]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    got += [second.update(one, 23 + step) for step, one in enumerate(told[23:])]
    assert got == expected
    assert second.state_dict() == whole.state_dict()
    fresh = AdaptiveConcurrency()
    fresh.load_state_dict(AdaptiveConcurrency().state_dict())
    assert fresh.update(load(10, limit=40)) == 40


@pytest.mark.parametrize(
    "state", [{}, {"value": "x", "step": 1, "nonfinite": 0}, {"value": -1, "step": 1, "nonfinite": 0}]
)
def test_refuses_a_broken_state(state: dict[str, object]) -> None:
    """Nothing of it is taken over."""
    law = AdaptiveConcurrency()
    law.update(load(100), 3)
    before = law.state_dict()
    with pytest.raises(ValueError, match="state of the concurrency controller"):
        law.load_state_dict(state)
    assert law.state_dict() == before


@pytest.mark.parametrize(
    "bad",
    [{"least": 0}, {"least": 9, "most": 8}, {"increase": 0}, {"decrease": 1.0}, {"kv_low": 0.9}, {"queue_high": -1.0}],
)
def test_refuses_parameters(bad: dict[str, float]) -> None:
    """Bounds, parts and marks that mean nothing."""
    with pytest.raises(ValueError, match="must"):
        AdaptiveConcurrency(**bad)  # type: ignore[arg-type]
