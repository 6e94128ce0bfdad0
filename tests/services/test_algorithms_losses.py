"""Per-token losses against scalar formulas; clipped, masked and extreme tokens behave as stated."""

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from midflight.services.algorithms.losses import LOSSES as ALL_LOSSES
from midflight.services.algorithms.losses import LossKind, Sampled, TokenLoss, token_loss
from midflight.services.algorithms.ratios import effective_sample_size, log_ratio

LOW, HIGH, CAP = 0.2, 0.3, 2.0
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], TokenLoss]


def loss_of(kind: LossKind) -> Loss:
    """(logp, proximal, behaviour, advantage, mask) -> the loss of a name."""

    def run(p: Tensor, o: Tensor, b: Tensor, a: Tensor, m: Tensor) -> TokenLoss:
        own = torch.arange(len(p)) // 5
        tokens = Sampled(
            logp=p, proximal=o, behaviour=b, advantage=a, mask=m, sequence=own, clip_low=LOW, clip_high=HIGH, cap=CAP
        )
        return token_loss(kind, tokens)

    return run


CLASSIC: tuple[LossKind, ...] = ("bypass_ppo", "decoupled_ppo", "tis")
LOSSES: dict[str, Loss] = {kind: loss_of(kind) for kind in CLASSIC}
EVERY: dict[str, Loss] = {kind: loss_of(kind) for kind in ALL_LOSSES}


def slow(kind: str, p: float, o: float, b: float, a: float) -> tuple[float, float]:
    """(loss, d loss / d logp) of one token by the textbook formulas."""
    if kind == "tis":
        weight = min(math.exp(p - b), CAP)
        return -weight * a * p, -weight * a
    weight = min(math.exp(o - b), CAP) if kind == "decoupled_ppo" else 1.0
    ratio = math.exp(p - (o if kind == "decoupled_ppo" else b))
    free, clipped = -ratio * a, -min(max(ratio, 1 - LOW), 1 + HIGH) * a
    return weight * max(free, clipped), weight * free if free >= clipped else 0.0


def tokens(seed: int, n: int = 200) -> list[Tensor]:
    """Current, proximal and behaviour log-probs and advantages, ratios spread well beyond the clips."""
    g = torch.Generator().manual_seed(seed)
    base = -3 * torch.rand(n, generator=g, dtype=torch.float64)
    p, o, b = (base + 0.5 * torch.randn(n, generator=g, dtype=torch.float64) for _ in range(3))
    return [p, o, b, torch.randn(n, generator=g, dtype=torch.float64)]


@pytest.mark.parametrize("kind", LOSSES)
def test_value_and_gradient(kind: str) -> None:
    """Loss and gradient of every token equal the scalar formulas: within 1e-12."""
    p, o, b, a = tokens(0)
    p.requires_grad_()
    out = LOSSES[kind](p, o, b, a, torch.ones(200, dtype=torch.bool))
    (grad,) = torch.autograd.grad(out.loss.sum(), p)
    expected = [slow(kind, *row) for row in zip(*(x.tolist() for x in (p, o, b, a)), strict=True)]
    assert out.loss.tolist() == pytest.approx([e[0] for e in expected], abs=1e-12)
    assert grad.tolist() == pytest.approx([e[1] for e in expected], abs=1e-12)
    assert bool((grad[out.clipped_low | out.clipped_high] == 0).all())
    if kind != "tis":
        assert bool((grad[~(out.clipped_low | out.clipped_high)] != 0).all())
        assert 0 < out.clipped_low.sum() < 200
        assert 0 < out.clipped_high.sum() < 200


@pytest.mark.parametrize("kind", EVERY)
def test_on_policy_gradient_is_reinforce(kind: str) -> None:
    """With pi = pi_old = mu every loss has gradient -A and no token is clipped or capped."""
    p, _, _, a = tokens(1)
    leaf = p.clone().requires_grad_()
    out = EVERY[kind](leaf, p, p, a, torch.ones(200, dtype=torch.bool))
    (grad,) = torch.autograd.grad(out.loss.sum(), leaf)
    torch.testing.assert_close(grad, -a, rtol=1e-12, atol=0)
    assert torch.equal(out.ratio, torch.ones_like(p))
    assert not (out.clipped_low | out.clipped_high | out.capped).any()


def test_decoupled_with_proximal_equal_behaviour_is_bypass() -> None:
    """Without staleness the two PPO losses are one, bit for bit."""
    p, _, b, a = tokens(2)
    mask = torch.ones(200, dtype=torch.bool)
    assert torch.equal(LOSSES["decoupled_ppo"](p, b, b, a, mask).loss, LOSSES["bypass_ppo"](p, b, b, a, mask).loss)


def test_weights_carry_no_gradient() -> None:
    """Proximal, behaviour and advantage receive no gradient from any loss."""
    for loss in EVERY.values():
        p, o, b, a = (x.requires_grad_() for x in tokens(3))
        out = loss(p, o.detach(), b.detach(), a, torch.ones(200, dtype=torch.bool))
        assert torch.autograd.grad(out.loss.sum(), (p, a), allow_unused=True)[1] is None


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_masked_slots_may_hold_anything(kind: str, garbage: float) -> None:
    """NaN and infinities in masked slots: loss 0 and gradient 0 there, everything else bit for bit unchanged."""
    mask = torch.tensor([random.Random(i).random() < 0.5 for i in range(200)])
    results = []
    for dirty in (False, True):
        values = [torch.where(mask, x, garbage) if dirty else x for x in tokens(4)]
        leaf = values[0].clone().requires_grad_()
        out = EVERY[kind](leaf, values[1], values[2], values[3], mask)
        results.append((out, torch.autograd.grad(out.loss.sum(), leaf)[0]))
    (clean, g0), (dirty_out, g1) = results
    assert torch.equal(clean.loss[mask], dirty_out.loss[mask])
    assert torch.equal(g0[mask], g1[mask])
    assert not dirty_out.loss[~mask].any()
    assert not g1[~mask].any()
    assert not dirty_out.capped[~mask].any()


def test_extreme_ratios_stay_finite() -> None:
    """Log-probs 1e4 nats apart: the ratio is cut at e^20, loss and gradient are finite."""
    mask = torch.ones(2, dtype=torch.bool)
    p = torch.tensor([0.0, -1e4]).requires_grad_()
    b = torch.tensor([-1e4, 0.0])
    for loss in EVERY.values():
        out = loss(p, b, b, torch.tensor([-1.0, 1.0]), mask)
        (grad,) = torch.autograd.grad(out.loss.sum(), p)
        assert bool(torch.isfinite(out.loss).all() & torch.isfinite(grad).all())
    assert log_ratio(p, b).tolist() == [20.0, -20.0]


def test_effective_sample_size() -> None:
    """1 for equal weights, 1/n when one weight rules."""
    assert effective_sample_size(torch.full((8,), 0.3)).item() == pytest.approx(1.0)
    assert effective_sample_size(torch.tensor([1.0, 0.0, 0.0, 0.0])).item() == pytest.approx(0.25)
