"""The fused kernels against the lines they stand for: any shape, any end inside, whatever is not finite."""

import dataclasses
import math
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from midflight.services import algorithms
from midflight.services.algorithms import estimators, fast
from midflight.services.algorithms.estimators import Estimate
from midflight.services.algorithms.steps import Steps


@pytest.fixture(scope="module", autouse=True)
def _whatever_the_size() -> Iterator[None]:
    """Small arrays go through the kernels as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "SMALLEST", 1)
        yield


def noise(seed: int, rows: int, length: int, dtype: torch.dtype, spread: float = 1.0) -> Steps:
    """Transitions with terminations and truncations inside; the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values, beyond, x = (torch.randn(rows, length, generator=generator) for _ in range(4))
    kind = torch.rand(rows, length, generator=generator)
    terminated, truncated = kind < 0.1, kind > 0.9
    after = torch.where(terminated | truncated, beyond, torch.cat([values[:, 1:], beyond[:, -1:]], dim=1))
    r, v, after, x = (column.to(dtype) for column in (rewards, values, after, spread * x))
    return Steps.of(r, v, after, terminated, truncated, x)


def close(found: Estimate | fast.Fused | None, exact: Estimate) -> None:
    """To float32's rounding."""
    assert found is not None
    for ours, wanted in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=2e-5)


shapes = st.tuples(st.integers(1, 5), st.integers(1, 70))


@given(st.integers(0, 2**31), shapes, st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_gae_for_any_shape(seed: int, shape: tuple[int, int], gamma: float, lamda: float) -> None:
    """Also lengths that no block divides."""
    close(
        fast.gae(noise(seed, *shape, torch.float32), gamma, lamda),
        estimators.gae(noise(seed, *shape, torch.float64), gamma, lamda),
    )


@given(st.integers(0, 2**31), shapes, st.floats(0, 1), st.floats(1, 3), st.floats(0.5, 1), st.floats(0.5, 4))
@settings(max_examples=60, deadline=None)
def test_vtrace_for_any_shape(
    seed: int, shape: tuple[int, int], lamda: float, rho_bar: float, c_bar: float, pg_rho_bar: float
) -> None:
    """Every cap on its own, ratios of e^-9 to e^9."""
    numbers = (0.97, lamda, rho_bar, c_bar, pg_rho_bar)
    close(
        fast.vtrace(noise(seed, *shape, torch.float32, 2.0), *numbers),
        estimators.vtrace(noise(seed, *shape, torch.float64, 2.0), *numbers),
    )


def test_the_estimators_take_them() -> None:
    """float32 on a CPU goes through the kernels and equals the plain way; float64 does not."""
    steps = noise(3, 4, 100, torch.float32)
    for name in ("gae", "vtrace"):
        close(getattr(estimators, name)(steps), getattr(estimators, name)(noise(3, 4, 100, torch.float64)))
    assert fast.gae(noise(3, 4, 100, torch.float64), 0.99, 0.95) is None
    assert fast.gae(noise(3, 4, 0, torch.float32), 0.99, 0.95) is None


def test_the_ratio_at_its_limits() -> None:
    """e^x for |x| up to 20 to a few ulp: V-trace of one step, without a value, is the capped ratio times the reward."""
    x = torch.linspace(-20, 20, 4001)
    one, none = torch.ones_like(x)[:, None], torch.zeros_like(x)[:, None]
    steps = Steps.of(one, none, none, terminated=one > 0, log_ratio=x[:, None])
    found = fast.vtrace(steps, 1.0, 1.0, 1e9, 1e9, 1e9)
    assert found is not None
    torch.testing.assert_close(found.advantages[:, 0].double(), x.double().exp(), rtol=4e-7, atol=0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["rewards", "values", "log_ratio"])
def test_what_is_not_finite_reaches_what_it_should(bad: float, field: str) -> None:
    """As in the plain way in float64: no other row, nothing before a cut."""
    single, double = noise(5, 3, 40, torch.float32), noise(5, 3, 40, torch.float64)
    for steps in (single, double):
        getattr(steps, field)[1, 20] = bad
    for name in ("gae", "vtrace"):
        for ours, wanted in zip(getattr(estimators, name)(single), getattr(estimators, name)(double), strict=True):
            assert torch.equal(ours.isfinite(), wanted.isfinite())
            assert bool(ours[0].isfinite().all())


def test_views_and_gradients() -> None:
    """What lies in memory another way is read as it is meant, and what carries a gradient is taken as constants."""
    steps = noise(7, 6, 33, torch.float32)

    def turned(x: Tensor) -> Tensor:
        return x.t().contiguous().t()

    other = Steps(*(turned(getattr(steps, name)) for name in Steps.__slots__))
    other.values.requires_grad_()
    assert not estimators.gae(dataclasses.replace(other, values=other.values.double())).returns.requires_grad
    for name in ("gae", "vtrace"):
        for ours, wanted in zip(getattr(estimators, name)(other), getattr(estimators, name)(steps), strict=True):
            assert not ours.requires_grad
            assert torch.equal(ours, wanted)


def test_a_ratio_beyond_all_limits() -> None:
    """Steps made by hand may hold one: it counts as e^87, or its inverse, and stays finite."""
    flags = torch.ones(1, 1, dtype=torch.bool)
    for x, wanted in ((500.0, math.exp(87)), (-500.0, math.exp(-87))):
        one = torch.ones(1, 1)
        found = fast.vtrace(Steps(one, 0 * one, one, flags, flags, x * one), 1.0, 1.0, 1e38, 1e38, 1e38)
        assert found is not None
        assert found.advantages.item() == pytest.approx(wanted, rel=1e-5)


def test_kernels_that_do_not_compile_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that cannot be written ends no run."""

    def broken(*words: object) -> None:
        raise RuntimeError("no locator available")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.__import__", broken)
        fast._kernels.cache_clear()
        with pytest.warns(RuntimeWarning, match="no locator"):
            assert fast._kernels() is None
    fast._kernels.cache_clear()


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain way, and no word about it."""
    with monkeypatch.context() as patch:
        patch.delattr(algorithms, "scan_cpu", raising=False)
        patch.setitem(sys.modules, f"{algorithms.__name__}.scan_cpu", None)
        fast._kernels.cache_clear()
        steps = noise(11, 2, 30, torch.float32)
        assert fast.gae(steps, 0.99, 0.95) is None
        close(estimators.gae(steps), estimators.gae(noise(11, 2, 30, torch.float64)))
    fast._kernels.cache_clear()
    assert fast.gae(steps, 0.99, 0.95) is not None
