"""Estimators against slow loops in float64, and the identities between them."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from support import slow_estimators as slow
from support.some_steps import by_row, some_steps

from midflight.services.algorithms import estimators as fast
from midflight.services.algorithms.estimators import Estimate
from midflight.services.algorithms.recurrence import recur, windowed
from midflight.services.algorithms.steps import Steps

BASE = ("rewards", "values", "next_values", "terminated", "cut")
exact = partial(torch.testing.assert_close, rtol=0.0, atol=1e-12)
ALL: dict[str, Callable[[Steps], Estimate]] = {
    "gae": fast.gae,
    "td_lambda": fast.td_lambda,
    "vtrace": lambda s: fast.vtrace(s, lamda=0.9),
    "retrace": fast.retrace,
    "clipped_is": fast.clipped_is,
    "multistep gae": fast.multistep,
    "multistep td": lambda s: fast.multistep(s, bootstrap_method="td"),
    "multistep mc": lambda s: fast.multistep(s, bootstrap_method="mc"),
    "reinforce": fast.reinforce,
}


@pytest.mark.parametrize("length", [1, 2, 3, 8, 9, 10, 31])
@pytest.mark.parametrize("rows", [1, 4])
def test_recurrence(rows: int, length: int) -> None:
    """Blocked equals step by step, with zeros and ones among the coefficients, at every remainder of a block."""
    generator = torch.Generator().manual_seed(length)
    a = torch.rand(rows, length, generator=generator, dtype=torch.float64) * 1.2
    a[torch.rand(rows, length, generator=generator) < 0.2] = 0.0
    a[torch.rand(rows, length, generator=generator) < 0.2] = 1.0
    b = torch.randn(rows, length, generator=generator, dtype=torch.float64)
    expected = torch.zeros_like(b)
    for t in reversed(range(length)):
        expected[:, t] = b[:, t] + a[:, t] * (expected[:, t + 1] if t + 1 < length else 0.0)
    exact(recur(a, b), expected)
    exact(recur(a[0], b[0]), expected[0])


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 40])
def test_windowed_recurrence(n: int) -> None:
    """n terms of the recurrence and no more."""
    generator = torch.Generator().manual_seed(n)
    a, b = (torch.rand(17, generator=generator, dtype=torch.float64) for _ in range(2))
    a[5] = 0.0
    expected = [
        sum(math.prod(a[t : t + k].tolist()) * float(b[t + k]) for k in range(min(n, 17 - t))) for t in range(17)
    ]
    exact(windowed(a, b, n), torch.tensor(expected, dtype=torch.float64))


def test_nothing_and_nonsense() -> None:
    """No steps give no estimates; a window of none, and fields of other shapes, are refused."""
    empty, whole = torch.zeros(2, 0), torch.zeros(3, dtype=torch.int64)
    assert recur(empty, empty).shape == (2, 0)
    with pytest.raises(ValueError, match="at least one step"):
        windowed(torch.ones(3), torch.ones(3), 0)
    with pytest.raises(ValueError, match="same shape"):
        Steps.of(torch.zeros(3), torch.zeros(2), torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="floating point"):
        Steps.of(whole, whole, whole, whole)
    with pytest.raises(ValueError, match="rho_bar >= c_bar"):
        fast.vtrace(some_steps(0), rho_bar=0.5)


@pytest.mark.parametrize("seed", range(3))
def test_against_slow_loops(seed: int) -> None:
    """Every estimator, with terminations, truncations and ends of segments inside the rows."""
    steps = some_steps(seed)
    values = steps.values
    expected = by_row(steps, slow.gae, *BASE, g=0.97, lam=0.9)
    exact(fast.gae(steps, 0.97, 0.9), Estimate(expected, expected + values))

    ends = ("rewards", "next_values", "terminated", "cut")
    returns = by_row(steps, slow.td_lambda, *ends, g=0.97, lam=0.9)
    exact(fast.td_lambda(steps, 0.97, 0.9), Estimate(returns - values, returns))

    for n in (1, 3, 50):
        returns = by_row(steps, slow.n_step, *ends, g=0.97, n=n)
        found = fast.multistep(steps, 0.97, n_steps=n, bootstrap_method="td")
        exact(found, Estimate(returns - values, returns))
        exact(fast.multistep(steps, 0.97, 1.0, n_steps=n), found)
    exact(fast.multistep(steps, 0.97, n_steps=3, bootstrap_method="mc").returns, returns)
    exact(fast.multistep(steps, 0.97, 0.9, n_steps=None), fast.gae(steps, 0.97, 0.9))

    off = ("rho", *BASE)
    pair = by_row(steps, slow.vtrace, *off, g=0.97, lam=0.9, rho_bar=1.3, c_bar=0.8)
    found = fast.vtrace(steps, 0.97, 0.9, rho_bar=1.3, c_bar=0.8)
    exact(found, Estimate(pair[:, 0], pair[:, 1]))

    advantages = by_row(steps, slow.retrace, *off, g=0.97, lam=0.9)
    targets = by_row(steps, slow.vtrace, *off, g=0.97, lam=0.9, rho_bar=1.0, c_bar=1.0)[:, 1]
    exact(fast.retrace(steps, 0.97, 0.9), Estimate(advantages, targets))

    advantages = by_row(steps, slow.clipped_is, *off, g=0.97, lam=0.9, eps=0.3)
    exact(fast.clipped_is(steps, 0.97, 0.9, 0.3), Estimate(advantages, advantages + values))


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_on_policy_identities(lam: float) -> None:
    """With every ratio 1 the corrections do nothing."""
    steps = some_steps(5)
    steps = dataclasses.replace(steps, log_ratio=torch.zeros_like(steps.log_ratio))
    plain = fast.gae(steps, 0.95, lam)
    exact(fast.td_lambda(steps, 0.95, lam), plain)
    exact(fast.vtrace(steps, 0.95, lam).returns, plain.returns)
    exact(fast.vtrace(steps, 0.95, 1.0).advantages, fast.gae(steps, 0.95, 1.0).advantages)
    exact(fast.retrace(steps, 0.95, lam), plain)
    exact(fast.clipped_is(steps, 0.95, lam, 0.1), plain)
    exact(fast.clipped_is(some_steps(5), 0.95, lam, 0.0), fast.gae(some_steps(5), 0.95, lam))
    exact(fast.gae(steps, 0.0, lam).advantages, steps.rewards - steps.values)


@pytest.mark.parametrize("name", ALL)
def test_what_ends_ends(name: str) -> None:
    """V behind a termination is never read; NaN in one trajectory reaches no other; rows do not mix."""
    steps = some_steps(7, rows=4)
    before = ALL[name](steps)
    poisoned = dataclasses.replace(steps, next_values=torch.where(steps.terminated, math.nan, steps.next_values))
    exact(ALL[name](poisoned), before)

    first_cut = int(steps.cut[1].nonzero()[0])
    rewards, values = steps.rewards.clone(), steps.values.clone()
    rewards[1, first_cut + 1 :] = math.nan
    values[1, first_cut + 1 :] = math.nan
    found = ALL[name](dataclasses.replace(steps, rewards=rewards, values=values))
    for got, expected in zip(found, before, strict=True):
        exact(got[1, : first_cut + 1], expected[1, : first_cut + 1])
        exact(got[[0, 2, 3]], expected[[0, 2, 3]])
        assert got[1, -1].isnan()


@pytest.mark.parametrize("name", ALL)
def test_affine(name: str) -> None:
    """Scaling rewards and values scales advantages; shifting V by k and each reward by (1 - gamma) k changes none."""
    steps = some_steps(11)
    before = ALL[name](steps).advantages
    scaled = dataclasses.replace(
        steps, rewards=3 * steps.rewards, values=3 * steps.values, next_values=3 * steps.next_values
    )
    exact(ALL[name](scaled).advantages, 3 * before)
    k = 5.0
    shifted = dataclasses.replace(
        steps,
        rewards=steps.rewards + k - 0.99 * k * (~steps.terminated).double(),
        values=steps.values + k,
        next_values=steps.next_values + k,
    )
    torch.testing.assert_close(ALL[name](shifted).advantages, before, rtol=0.0, atol=1e-10)


def test_retrace_gives_vtrace_targets_and_pg_advantages() -> None:
    """min(1, rho) A of Retrace is vs - V of V-trace, for every lambda (`algorithms.md` 1.2)."""
    steps = some_steps(13)
    for lam in (0.3, 1.0):
        advantages = fast.retrace(steps, 0.95, lam).advantages
        targets = fast.vtrace(steps, 0.95, lam).returns
        exact(steps.ratio.clamp(max=1.0) * advantages, targets - steps.values)


def test_retrace_q() -> None:
    """With E_pi Q(s', .) = V(s') and Q = V the targets are V plus the advantages."""
    steps = some_steps(17)
    found = fast.retrace_q(steps.values, steps.next_values, steps, 0.95, 0.8)
    exact(found, steps.values + fast.retrace(steps, 0.95, 0.8).advantages)


def test_trace_reach() -> None:
    """The product of later traces up to the cut; on-policy nothing decays."""
    steps = some_steps(19, rows=1)
    reach = fast.trace_reach(steps, 0.9, 1.0)[0].tolist()
    rho, cut = steps.ratio[0].tolist(), steps.cut[0].tolist()
    for t, value in enumerate(reach):
        last = slow.end(cut, t)
        assert value == pytest.approx(math.prod(0.9 * min(1.0, rho[i]) for i in range(t + 1, last + 1)), rel=1e-12)
    on_policy = dataclasses.replace(steps, log_ratio=torch.zeros_like(steps.log_ratio))
    assert bool((fast.trace_reach(on_policy) == 1).all())


def test_decay_of_clipped_traces() -> None:
    """`algorithms.md` 1.4: with log rho ~ N(-s^2/2, s^2) and c_bar 1 the reach falls as exp(-0.4 s) a token."""
    generator = torch.Generator().manual_seed(0)
    s, length = 0.02, 4096
    x = s * torch.randn(64, length, generator=generator, dtype=torch.float64) - s * s / 2
    zeros = torch.zeros_like(x)
    steps = Steps.of(zeros, zeros, zeros, zeros, None, x)
    rate = -fast.trace_reach(steps)[:, 0].log().mean() / length
    assert float(rate) == pytest.approx(s / math.sqrt(2 * math.pi), rel=0.05)


def test_float32_is_enough() -> None:
    """The error at 32,768 steps with gamma = lambda = 1 is small against the size of the advantages."""
    steps = some_steps(23, rows=1, length=32768, ends=False)
    exact = fast.gae(steps, 1.0, 1.0).advantages
    columns = {f.name: getattr(steps, f.name) for f in dataclasses.fields(steps)}
    single = Steps(**{name: x.float() if x.is_floating_point() else x for name, x in columns.items()})
    error = (fast.gae(single, 1.0, 1.0).advantages.double() - exact).abs().max() / exact.abs().max()
    assert float(error) < 1e-4
