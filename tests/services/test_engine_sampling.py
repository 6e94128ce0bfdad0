"""The sampler: exact distribution, independent noise, log-probs of what was sampled."""

import torch

from midflight.services.rollout.sampling import as_int64, sample, uniforms

CHI_SQUARE_999 = 61.1  # 0.999 quantile at 31 degrees of freedom


def noise(seeds: range, counters: range) -> torch.Tensor:
    """Noise table [seeds, counters]."""
    return uniforms(torch.tensor(seeds).unsqueeze(1), torch.tensor(counters))


def test_sampler_against_exact_probabilities() -> None:
    """Chi-square of 200,000 draws against softmax(logits / T), at three temperatures and over seeds or positions."""
    logits = torch.randn(32, generator=torch.Generator().manual_seed(0))
    draws = 200_000
    for temperature in (0.7, 1.0, 1.3):
        expected = (logits.double() / temperature).softmax(0) * draws
        for uniform in (noise(range(draws), range(1)), noise(range(2), range(draws // 2))):
            tokens, _ = sample(
                logits.expand(draws, -1), torch.full((draws,), 1 / temperature), uniform.flatten(), False
            )
            counts = torch.bincount(tokens, minlength=32)
            assert ((counts - expected) ** 2 / expected).sum() < CHI_SQUARE_999


def test_noise_is_uniform_and_uncorrelated() -> None:
    """Mean, variance and the correlation of neighbouring seeds and counters are those of independent uniforms."""
    table = noise(range(1000), range(1000))
    assert 0 <= table.min() <= table.max() < 1
    assert abs(table.mean() - 1 / 2) < 1e-3
    assert abs(table.var() - 1 / 12) < 1e-3
    centred = (table - 0.5) * 12**0.5
    assert abs((centred[1:] * centred[:-1]).mean()) < 4e-3
    assert abs((centred[:, 1:] * centred[:, :-1]).mean()) < 4e-3
    assert len(set(table.flatten().tolist())) > 0.96 * table.numel()


def test_noise_is_splitmix64() -> None:
    """The hash is SplitMix64 of a mixed seed, checked against plain integers modulo 2^64."""

    def mix(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    for seed in (0, 1, 2**63, 2**64 - 1, 123456789):
        for counter in (0, 1, 1000):
            expected = mix((mix(seed) + (counter + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 40
            got = uniforms(torch.tensor([as_int64(seed)]), torch.tensor([counter]))
            assert got.item() * 2**24 == expected


def test_extreme_noise_gives_possible_tokens() -> None:
    """Noise 0 and the largest below 1 never select a token of probability zero."""
    logits = torch.full((2, 5), -torch.inf)
    logits[:, 1], logits[:, 3] = 0.3, -0.2
    tokens, logprobs = sample(logits, torch.ones(2), torch.tensor([0.0, 1 - 2.0**-24]), False)
    assert tokens.tolist() == [1, 3]
    assert torch.allclose(logprobs, logits.log_softmax(1).gather(1, tokens.unsqueeze(1)).squeeze(1))


def test_greedy_rows_and_nan_rows() -> None:
    """Greedy rows take the mode with its log-prob at temperature 1; NaN rows stay in range and show."""
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    logits[2] = torch.nan
    tokens, logprobs = sample(logits, torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0.9, 0.9, 0.5]), True)
    assert tokens[0] == logits[0].argmax()
    assert torch.allclose(logprobs[0], logits[0].log_softmax(0).max())
    assert torch.allclose(logprobs[1], (logits[1] * 2).log_softmax(0)[tokens[1]])
    assert 0 <= tokens[2] < 50
    assert logprobs[2].isnan()
