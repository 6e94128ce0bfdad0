"""Group advantages against slow loops, and the rules for groups that have no baseline."""

import random
import statistics

import pytest
import torch

from midflight.services.algorithms.baselines import Estimator, advantages, fold_kl, moved

ESTIMATORS: list[Estimator] = [
    "dr_grpo", "grpo", "rloo", "opo", "maxrl", "reinforce", "reinforce_pp", "reinforce_pp_baseline",
]  # fmt: skip


UNITLESS = ("grpo", "maxrl", "reinforce_pp", "reinforce_pp_baseline")
"""What is divided by a spread or a mean."""


def slow(rewards: list[float], group: list[int], lengths: list[int], estimator: Estimator) -> list[float]:
    """The table of the design, one sample at a time, Python floats."""
    if estimator == "reinforce":
        return [reward - statistics.fmean(rewards) for reward in rewards]
    if estimator == "reinforce_pp":
        return whitened(rewards, lengths)
    out = []
    for i, reward in enumerate(rewards):
        own = [j for j in range(len(rewards)) if group[j] == group[i]]
        mates, others = [rewards[j] for j in own], [rewards[j] for j in own if j != i]
        if len(mates) == 1 or min(mates) == max(mates):
            out.append(0.0)
        elif estimator == "rloo":
            out.append(reward - statistics.fmean(others))
        elif estimator == "opo":
            out.append(reward - sum(lengths[j] * rewards[j] for j in own) / sum(lengths[j] for j in own))
        elif estimator == "maxrl":
            out.append((reward - statistics.fmean(mates)) / statistics.fmean(mates))
        else:
            scale = statistics.stdev(mates) + 1e-6 if estimator == "grpo" else 1.0
            out.append((reward - statistics.fmean(mates)) / scale)
    if estimator == "reinforce_pp_baseline":
        flat = [value == 0.0 for value in out]
        out = [0.0 if still else value for still, value in zip(flat, whitened(out, lengths), strict=True)]
    return out


def whitened(values: list[float], lengths: list[int]) -> list[float]:
    """Over tokens, one by one."""
    tokens = [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]
    mean, variance = statistics.fmean(tokens), statistics.variance(tokens)
    return [(value - mean) / (variance + 1e-8) ** 0.5 for value in values]


def scores(seed: int, n: int = 40) -> tuple[list[float], list[int]]:
    rng = random.Random(seed)
    return [rng.choice([0.0, 0.1, 1.0, rng.random()]) for _ in range(n)], [rng.randrange(12) for _ in range(n)]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("seed", range(8))
def test_equals_the_slow_reference(estimator: Estimator, seed: int) -> None:
    """Ragged groups in any order, singletons and flat groups included: within 1e-9."""
    rewards, group = scores(seed)
    lengths = [1 + (7 * i) % 5 for i in range(len(rewards))]
    ours = advantages(
        torch.tensor(rewards, dtype=torch.float64), torch.tensor(group), estimator, lengths=torch.tensor(lengths)
    ).values
    assert ours.dtype == torch.float64
    assert ours.tolist() == pytest.approx(slow(rewards, group, lengths, estimator), abs=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_identical_rewards_give_exactly_zero(estimator: Estimator) -> None:
    """A flat group is 0, not a rounding error divided by epsilon, and it is counted."""
    for n in range(2, 12):
        rewards = torch.full((n,), 0.1, dtype=torch.float64)
        result = advantages(rewards, torch.zeros(n, dtype=torch.long), estimator, norm_var=True)
        assert result.values.tolist() == [0.0] * n
        assert (result.groups, result.singletons, result.flat) == (1, 0, 1)


@pytest.mark.parametrize("estimator", ["dr_grpo", "grpo", "rloo", "opo", "maxrl", "reinforce_pp_baseline"])
def test_singletons_are_zero_and_counted(estimator: Estimator) -> None:
    """One member has no baseline: advantage 0, never the raw reward, never NaN."""
    result = advantages(torch.tensor([5.0, 1.0, 0.0]), torch.tensor([8, 2, 2]), estimator, norm_var=True)
    assert result.values[0] == 0.0
    assert result.values.isfinite().all()
    assert (result.groups, result.singletons, result.flat) == (2, 1, 0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_permutation_shift_and_scale(estimator: Estimator) -> None:
    """Reordering reorders; adding a constant changes nothing; scaling scales, unless divided by the std."""
    rewards, group = (torch.tensor(x) for x in scores(3))
    base = advantages(rewards, group, estimator).values
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(advantages(rewards[order], group[order], estimator).values, base[order], atol=1e-12)
    if estimator != "maxrl":  # a share of the mean
        assert torch.allclose(advantages(rewards.double() + 5, group, estimator).values, base, atol=1e-9)
    scaled = advantages(rewards.double() * 3, group, estimator).values
    assert torch.allclose(scaled, base if estimator in UNITLESS else 3 * base, atol=1e-4)


def test_group_sums_and_rloo_scaling() -> None:
    """dr_grpo and grpo sum to 0 in every group; rloo is dr_grpo * G / (G - 1)."""
    rewards = torch.rand(24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    group = torch.arange(24) // 6
    dr = advantages(rewards, group, "dr_grpo").values
    assert dr.view(4, 6).sum(1).abs().max() < 1e-14
    assert advantages(rewards, group, "grpo").values.view(4, 6).sum(1).abs().max() < 1e-9
    assert torch.allclose(advantages(rewards, group, "rloo").values, dr * 6 / 5, atol=1e-14)
    assert torch.equal(
        advantages(rewards, group, "grpo").values, advantages(rewards, group, "dr_grpo", norm_var=True).values
    )


def test_reinforce_std() -> None:
    """With norm_var the batch's own mean and unbiased std are removed."""
    rewards = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = advantages(rewards, torch.arange(50), "reinforce", norm_var=True).values
    assert values.mean().abs() < 1e-14
    assert values.std().item() == pytest.approx(1.0, abs=1e-4)


def test_ema_compares_with_what_came_before() -> None:
    """The first batch with itself, later ones with the decaying mean; a batch of equal rewards teaches then."""
    batches = [[0.0, 1.0], [1.0, 1.0], [0.5, 0.0]]
    baseline: float | None = None
    expected = [[-0.5, 0.5], [0.5, 0.5], [0.5 - 0.6, 0.0 - 0.6]]
    for rewards, wanted in zip(batches, expected, strict=True):
        found = advantages(torch.tensor(rewards), torch.arange(2), "ema", baseline=baseline)
        assert found.values.tolist() == pytest.approx(wanted)
        baseline = moved(baseline, torch.tensor(rewards), decay=0.8)
    assert baseline == pytest.approx(0.8 * 0.6 + 0.2 * 0.25)


def test_kl_is_folded_onto_its_own_sequence() -> None:
    """Every token's penalty is subtracted from the reward of the sequence that owns it, once."""
    rewards = torch.tensor([1.0, 2.0, 3.0])
    folded = fold_kl(rewards, torch.tensor([0.5, 0.25, -1.0]), torch.tensor([2, 0, 2]), coef=2.0)
    assert folded.tolist() == [0.5, 2.0, 4.0]
