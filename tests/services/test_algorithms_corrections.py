"""Weights and masks against plain loops over sequences, and what they may never do."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from midflight.services.algorithms import corrections as c

Tokens = tuple[Tensor, Tensor, Tensor, Tensor]
"""x [A], sequence [A], mask [A], advantage [A] (one a sequence)."""


def tokens(seed: int, spread: float = 0.6) -> Tokens:
    """Four sequences of 1 to 9 tokens, some masked, one wholly; x is 0 where masked, as `log_ratio` makes it."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([5, 1, 9, 4])
    sequence = torch.repeat_interleave(torch.tensor([3, 4, 7, 9]), lengths)
    mask = torch.rand(len(sequence), generator=generator) < 0.8
    mask[:5] = seed % 2 == 0
    x = spread * torch.randn(len(sequence), generator=generator, dtype=torch.float64)
    advantage = torch.repeat_interleave(torch.tensor([1.0, -1.0, -2.0, 0.5], dtype=torch.float64), lengths)
    return torch.where(mask, x, 0.0), sequence, mask, advantage


def per_sequence(rule: Callable[[list[float], float], float], t: Tokens) -> list[float]:
    """A rule over the counted x of each sequence and its advantage, at each of its tokens."""
    x, sequence, mask, advantage = t
    out = []
    for name, a in zip(sequence.tolist(), advantage.tolist(), strict=True):
        own = [v for v, s, m in zip(x.tolist(), sequence.tolist(), mask.tolist(), strict=True) if s == name and m]
        out.append(rule(own, a))
    return out


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@pytest.mark.parametrize("seed", range(6))
def test_weights(seed: int) -> None:
    """Truncated, token by token and as products over sequences; 1 where nothing is counted."""
    t = tokens(seed)
    x, sequence, mask, _ = t
    assert c.token_weight(x, 1.5).tolist() == pytest.approx([min(math.exp(v), 1.5) for v in x.tolist()])
    expected = per_sequence(lambda own, a: min(math.exp(sum(own)), 1.5), t)
    assert c.sequence_weight(x, sequence, mask, 1.5).tolist() == pytest.approx(expected)
    assert not c.token_weight(x.clone().requires_grad_(True)).requires_grad


@pytest.mark.parametrize("seed", range(6))
def test_bands(seed: int) -> None:
    """The band accepts ratios between its ends, and not their inverses (verl's K1 masks did)."""
    t = tokens(seed)
    x, sequence, mask, _ = t
    assert c.token_band(x).tolist() == [0.5 <= math.exp(v) <= 5.0 for v in x.tolist()]
    product = per_sequence(lambda own, a: float(0.5 <= math.exp(sum(own)) <= 2.0), t)
    assert c.sequence_band(x, sequence, mask, 0.5, 2.0).tolist() == [bool(v) for v in product]
    geometric = per_sequence(lambda own, a: float(0.9 <= math.exp(mean(own)) <= 1.2), t)
    assert c.geometric_band(x, sequence, mask, 0.9, 1.2).tolist() == [bool(v) for v in geometric]
    assert c.token_band(torch.tensor([math.log(4.0), math.log(0.25)])).tolist() == [True, False]


@pytest.mark.parametrize("seed", range(6))
def test_trust_region_and_opsm(seed: int) -> None:
    """TRM by the worst and the mean token; OPSM only for bad sequences that pi has moved away from."""
    t = tokens(seed)
    x, sequence, mask, advantage = t

    def k3(v: float) -> float:
        return math.exp(v) - 1 - v

    worst = per_sequence(lambda own, a: float(max([k3(v) for v in own], default=0.0) <= 0.1), t)
    assert c.trust_region_mask(x, sequence, mask, most=0.1).tolist() == [bool(v) for v in worst]
    average = per_sequence(lambda own, a: float(mean([k3(v) for v in own]) <= 0.1), t)
    assert c.trust_region_mask(x, sequence, mask, mean=0.1).tolist() == [bool(v) for v in average]
    assert bool(c.trust_region_mask(x, sequence, mask).all())
    kept = per_sequence(lambda own, a: float(not (own and a < 0 and -mean(own) > 0.1)), t)
    assert c.opsm(x, sequence, mask, advantage, 0.1).tolist() == [bool(v) for v in kept]


@pytest.mark.parametrize("seed", range(6))
def test_m2po(seed: int) -> None:
    """The largest x^2 go first, until the mean of what is left lies below; one always stays."""
    x, _, mask, _ = tokens(seed)
    squares = sorted(v * v for v, m in zip(x.tolist(), mask.tolist(), strict=True) if m)
    kept = max([k for k in range(1, len(squares) + 1) if mean(squares[:k]) < 0.04], default=1)
    keep = c.m2po(x, mask)
    assert int(keep.sum()) == kept
    assert not bool((keep & ~mask).any())
    assert float(x[keep].square().max()) <= float(x[mask & ~keep].square().min()) if kept < len(squares) else True
    assert int(c.m2po(torch.full((3,), 9.0), torch.ones(3, dtype=torch.bool)).sum()) == 1
    assert int(c.m2po(torch.zeros(3), torch.zeros(3, dtype=torch.bool)).sum()) == 0


def test_on_policy_nothing_happens() -> None:
    """With every ratio 1 all weights are 1 and every counted token is kept."""
    _, sequence, mask, advantage = tokens(0)
    x = torch.zeros(len(sequence), dtype=torch.float64)
    for weight in (c.token_weight(x), c.sequence_weight(x, sequence, mask)):
        assert bool((weight == 1).all())
    for keep in (
        c.token_band(x),
        c.sequence_band(x, sequence, mask),
        c.geometric_band(x, sequence, mask),
        c.trust_region_mask(x, sequence, mask, 1e-9, 1e-9),
        c.opsm(x, sequence, mask, advantage),
        c.m2po(x, mask),
    ):
        assert bool(keep[mask].all())


def test_length_trap_is_visible() -> None:
    """A little drift a token: the product of ratios rejects the long sequences, which the shares show."""
    sequence = torch.repeat_interleave(torch.arange(4), torch.tensor([10, 10, 100, 100]))
    x = torch.full((220,), 0.012)
    mask = torch.ones(220, dtype=torch.bool)
    keep = c.sequence_band(x, sequence, mask, 0.0, 3.0)
    counted = sequence.bincount()
    assert c.kept_by_length(sequence[keep].bincount(minlength=4), counted) == (1.0, 0.0)
    kept = c.geometric_band(x, sequence, mask, 0.9, 1.1)
    assert c.kept_by_length(sequence[kept].bincount(minlength=4), counted) == (1.0, 1.0)
    assert c.kept_by_length(counted[:0], counted[:0]) == (1.0, 1.0)
    assert c.kept_by_length(torch.tensor([0, 3, 4]), torch.tensor([0, 4, 8])) == (0.75, 0.5)
