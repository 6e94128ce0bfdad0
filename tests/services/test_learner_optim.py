"""AdamW's wrapper: schedules, decay of matrices only, live knobs, and a state that survives a round trip."""

import math

import pytest
import torch
from torch import nn

from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer, lr_factor


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def train(m: nn.Module, optimizer: PolicyOptimizer, steps: int, seed: int = 0) -> float:
    """Gradient steps on inputs that depend on the step number only; returns the last gradient norm."""
    norm = 0.0
    for _ in range(steps):
        optimizer.advance()
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed + optimizer.step))
        optimizer.zero_grad()
        torch.autograd.backward(m(x).square().mean())
        norm = optimizer.update()
    return norm


def test_schedule_endpoints() -> None:
    """Warm-up reaches the peak in its last step; cosine starts at the peak and ends at min_lr_ratio, exactly."""
    warm = OptimSettings(warmup_steps=4)
    assert [lr_factor(s, warm) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = OptimSettings(warmup_steps=2, schedule="cosine", total_steps=12, min_lr_ratio=0.1)
    assert lr_factor(2, cosine) == 1.0
    assert lr_factor(7, cosine) == pytest.approx(0.55)
    assert lr_factor(12, cosine) == lr_factor(99, cosine) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="total_steps"):
        OptimSettings(schedule="cosine")


def test_equals_torch_adamw() -> None:
    """Ten steps equal torch's own AdamW with the same decay on matrices: within 1e-7."""
    ours, theirs = module(), module()
    optimizer = PolicyOptimizer(ours, OptimSettings(lr=1e-2, weight_decay=0.1, warmup_steps=0, max_grad_norm=0.05))
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    norm = train(ours, optimizer, 10)
    for step in range(1, 11):
        adam.zero_grad()
        torch.autograd.backward(
            theirs(torch.randn(8, 4, generator=torch.Generator().manual_seed(step))).square().mean()
        )
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
        adam.step()
    assert norm == pytest.approx(expected.item(), rel=1e-5)
    assert norm > 0.05
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_knobs_act_from_the_next_batch() -> None:
    """A learning rate or weight decay assigned now is used by the next `advance`, within warm-up too."""
    optimizer = PolicyOptimizer(module(), OptimSettings(lr=1.0, weight_decay=0.0, warmup_steps=2))
    assert optimizer.advance() == 0.5
    optimizer.lr, optimizer.weight_decay = 0.1, 0.3
    assert optimizer.advance() == 0.1
    assert [g["weight_decay"] for g in optimizer.rules[0].param_groups] == [0.3, 0.0]


def test_non_finite_gradients_change_nothing() -> None:
    """A NaN gradient is reported and neither weights nor moments move."""
    m = module()
    optimizer = PolicyOptimizer(m, OptimSettings(lr=1e-2))
    train(m, optimizer, 2)
    before = {k: v.clone() for k, v in (dict(m.named_parameters()) | optimizer.tensors()).items()}
    torch.autograd.backward(m(torch.full((1, 4), math.nan)).sum())
    assert math.isnan(optimizer.update())
    assert all(torch.equal(v, before[k]) for k, v in (dict(m.named_parameters()) | optimizer.tensors()).items())


def test_state_round_trip_is_bitwise() -> None:
    """Moments and counters moved to a fresh optimizer continue bit for bit, at the rates that it was made with."""
    a, b = module(0), module(1)
    first = PolicyOptimizer(a, OptimSettings(lr=1e-2, warmup_steps=7))
    train(a, first, 3)
    first.lr = 2e-2
    second = PolicyOptimizer(b, OptimSettings(lr=2e-2, warmup_steps=7))
    b.load_state_dict(a.state_dict())
    second.load({k: v.clone() for k, v in first.tensors().items()}, first.values())
    train(a, first, 3)
    train(b, second, 3)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    with pytest.raises(ValueError, match="stranger"):
        second.load({"stranger/exp_avg": torch.zeros(1)}, first.values())
