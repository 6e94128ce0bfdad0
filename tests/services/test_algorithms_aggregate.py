"""Aggregation: each mode against nested loops, and no dependence on how the update was cut."""

import random

import pytest
import torch

from midflight.services.algorithms.aggregate import Aggregation, Denominators, aggregate, token_weights

MODES: list[Aggregation] = ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "const"]
MAX_LENGTH = 9


def update(seed: int) -> list[list[float]]:
    """Token losses of a few sequences."""
    rng = random.Random(seed)
    return [[rng.uniform(-1, 1) for _ in range(rng.randint(1, MAX_LENGTH))] for _ in range(rng.randint(1, 9))]


def slow(losses: list[list[float]], mode: Aggregation) -> float:
    """The definitions, sequence by sequence."""
    if mode == "token_mean":
        return sum(map(sum, losses)) / sum(map(len, losses))
    per_sequence = [sum(s) / {"seq_mean_token_mean": len(s), "const": MAX_LENGTH}.get(mode, 1) for s in losses]
    return sum(per_sequence) / len(losses)


def piece(losses: list[list[float]], rows: list[int], mode: Aggregation, denominators: Denominators) -> torch.Tensor:
    """The share of the micro-batch made of `rows`."""
    values = torch.tensor([v for i in rows for v in losses[i]], dtype=torch.float64)
    sequence = torch.tensor([i for i in rows for _ in losses[i]])
    weights = token_weights(mode, sequence, denominators)
    return aggregate(values, torch.ones_like(values, dtype=torch.bool), weights)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_definition_for_any_split(mode: Aggregation, seed: int) -> None:
    """The sum over micro-batches is the aggregate, for one, two and many micro-batches: within 1e-14."""
    losses = update(seed)
    n = len(losses)
    denominators = Denominators(sum(map(len, losses)), n, MAX_LENGTH)
    rows = random.Random(seed).sample(range(n), n)
    for parts in ([rows], [rows[: n // 2], rows[n // 2 :]], [[i] for i in rows]):
        total = sum(piece(losses, p, mode, denominators) for p in parts if p)
        assert float(total) == pytest.approx(slow(losses, mode), abs=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_masking_does_not_inflate_the_rest(mode: Aggregation) -> None:
    """A masked token, NaN inside, counts as loss 0 and stays in every denominator."""
    values = torch.tensor([1.0, float("nan"), 2.0], dtype=torch.float64)
    mask = torch.tensor([True, False, True])
    sequence = torch.tensor([0, 0, 1])
    weights = token_weights(mode, sequence, Denominators(3, 2, MAX_LENGTH))
    with_zero = aggregate(torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64), torch.ones_like(mask), weights)
    assert aggregate(values, mask, weights) == with_zero
