"""Surrogates: values by hand, gradients by finite differences, REINFORCE's gradient at r = 1, and what a clip cuts."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from midflight.services.algorithms import surrogates as s
from midflight.services.algorithms.ratios import log_ratio

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logp, anchor, advantage) -> loss [A]."""
SEQUENCE = torch.tensor([0, 0, 0, 1, 1, 2])
EVERY = torch.ones(6, dtype=torch.bool)
ALL: dict[str, Loss] = {
    "ppo": lambda p, q, a: s.ppo(log_ratio(p, q), a),
    "ppo dual": lambda p, q, a: s.ppo(log_ratio(p, q), a, dual=3.0),
    "cispo": lambda p, q, a: s.cispo(log_ratio(p, q), p, a),
    "gspo": lambda p, q, a: s.gspo(log_ratio(p, q), a, SEQUENCE, EVERY),
    "dppo": lambda p, q, a: s.dppo(log_ratio(p, q), p, q, a),
    "sapo": lambda p, q, a: s.sapo(log_ratio(p, q), a),
    "topr": lambda p, q, a: s.topr(log_ratio(p, q), p, a),
    "reinforce": lambda p, q, a: s.reinforce(p, a),
}
SMOOTH = ("ppo", "ppo dual", "dppo", "sapo", "reinforce")
"""Those whose gradient is that of their value; the others hold a part of it constant."""


def case(seed: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """(logp, anchor, advantage) in float64."""
    generator = torch.Generator().manual_seed(seed)
    anchor = -2 * torch.rand(6, generator=generator, dtype=torch.float64) - 0.1
    logp = (anchor + spread * torch.randn(6, generator=generator, dtype=torch.float64)).clamp(max=-0.01)
    return logp, anchor, torch.randn(6, generator=generator, dtype=torch.float64)


def gradient(loss: Loss, logp: Tensor, anchor: Tensor, advantage: Tensor) -> Tensor:
    leaf = logp.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(loss(leaf, anchor, advantage).sum(), leaf)
    return grad


@pytest.mark.parametrize("name", ALL)
def test_at_ratio_one_the_gradient_is_reinforces(name: str) -> None:
    """-A grad log pi, for every surrogate."""
    _, anchor, advantage = case(0, 0.0)
    torch.testing.assert_close(gradient(ALL[name], anchor, anchor, advantage), -advantage, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("seed", range(4))
def test_gradients_by_finite_differences(name: str, seed: int) -> None:
    """Away from kinks the gradient is the slope."""
    logp, anchor, advantage = case(seed, 0.3)
    grad = gradient(ALL[name], logp, anchor, advantage)
    for i in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[i] = 1e-6
        up, down = (float(ALL[name](logp + sign * step, anchor, advantage).sum()) for sign in (1, -1))
        assert float(grad[i]) == pytest.approx((up - down) / 2e-6, abs=1e-6)


def test_values() -> None:
    """By hand, at r = 2 and r = 1/2 for good and bad tokens."""
    x = torch.tensor([2.0, 2.0, 0.5, 0.5], dtype=torch.float64).log()
    logp, advantage = torch.full((4,), -0.7, dtype=torch.float64), torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    assert s.ppo(x, advantage, 0.2, 0.3).tolist() == pytest.approx([-1.3, 2.0, -0.5, 0.8])
    assert s.ppo(x + math.log(4), advantage, dual=3.0).tolist() == pytest.approx([-1.2, 3.0, -1.2, 2.0])
    assert s.cispo(x, logp, advantage, 0.2, 0.3).tolist() == pytest.approx([0.91, -0.91, 0.56, -0.56])
    assert s.topr(x, logp, advantage).tolist() == pytest.approx([0.7, -0.7, 0.7, -0.35])
    gate = 4 / (1 + math.exp(-1.0))
    assert float(s.sapo(x[:1], advantage[:1])) == pytest.approx(-gate)
    moved = s.dppo(x, logp, logp - x, advantage, delta=0.2)
    assert moved.tolist() == pytest.approx([0.0, 2.0, -0.5, 0.0])  # p = 0.50 against 0.25 and 0.99


def test_what_a_clip_cuts() -> None:
    """Beyond the clip PPO teaches nothing, CISPO still does; with the ratio on the good side PPO does too."""
    anchor = torch.full((2,), -1.0, dtype=torch.float64)
    logp, advantage = anchor + math.log(2.0), torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert gradient(ALL["ppo"], logp, anchor, advantage).tolist() == pytest.approx([0.0, 2.0])
    assert gradient(ALL["cispo"], logp, anchor, advantage).tolist() == pytest.approx([-2.0, 2.0])


def test_gspo_shares_one_ratio_a_sequence() -> None:
    """The value is the sequence's geometric mean; each token keeps its own gradient; masked tokens do not count."""
    anchor = torch.full((6,), -1.0, dtype=torch.float64)
    shift = torch.tensor([1e-4, 2e-4, 3e-4, 9.0, 0.0, 0.0], dtype=torch.float64)
    mask = torch.tensor([1, 1, 1, 0, 1, 1]).bool()
    x = log_ratio(anchor + shift, anchor, mask)
    loss = s.gspo(x, torch.ones(6, dtype=torch.float64), SEQUENCE, mask, 0.1, 0.1)
    assert loss.tolist()[:3] == pytest.approx([-math.exp(2e-4)] * 3)
    assert float(loss[4]) == -1.0


@pytest.mark.parametrize("name", ALL)
def test_weights_carry_no_gradient_and_masks_no_nan(name: str) -> None:
    """A masked slot gives a finite loss, whatever stood there, and no gradient to what was masked by `log_ratio`."""
    logp, anchor, advantage = case(1, 0.1)
    mask = torch.tensor([1, 1, 0, 1, 1, 1]).bool()
    leaf = torch.where(mask, logp, math.nan).requires_grad_(True)
    clean = torch.where(mask, leaf, 0.0)
    loss = ALL[name](clean, torch.where(mask, anchor, 0.0), torch.where(mask, advantage, 0.0))
    assert bool(loss.isfinite().all())
    (grad,) = torch.autograd.grad(loss[mask].sum(), leaf)
    assert bool(grad.isfinite().all())
    assert float(grad[2]) == 0.0
