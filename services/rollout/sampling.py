"""Sampling by inverse CDF with counter-based noise.

The noise of a token is a hash of (seed of its request, index of the token), so a request draws the same numbers
whatever shares its batch, and one number a token replaces a generator a row. The hash is SplitMix64 (Steele, Lea
and Flood 2014), written in wrapping int64 operations that run on any device.
"""

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_UNIFORM_BITS = 24


def as_int64(value: int) -> int:
    """The signed 64-bit integer with the low 64 bits of `value`."""
    low = value & 0xFFFFFFFFFFFFFFFF
    return low - (1 << 64) if low >> 63 else low


def uniforms(seeds: Tensor, counters: Tensor) -> Tensor:
    """Noise in [0, 1) on a grid of 2^-24: fp32 of the broadcast shape of int64 `seeds` and int64 `counters` >= 0."""
    stream = _mix(seeds) + (counters + 1) * as_int64(_GAMMA)
    return _shift(_mix(stream), 64 - _UNIFORM_BITS).float() * 2.0**-_UNIFORM_BITS


def sample(logits: Tensor, inverse_temperature: Tensor, uniform: Tensor, greedy: bool) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    logits [n, V]; inverse_temperature [n] fp32, 0 marking a greedy row; uniform [n] in [0, 1); `greedy` says whether
    any row is greedy. Returns tokens [n] int64 and their log-probs [n] fp32 under softmax(logits * inverse
    temperature), greedy rows at temperature 1. A row with NaN logits gets a NaN log-prob and a valid token.
    """
    scale = inverse_temperature
    if greedy:
        scale = torch.where(inverse_temperature == 0, 1.0, inverse_temperature)
    probabilities = (logits.float() * scale.unsqueeze(1)).softmax(1)
    cumulative = probabilities.cumsum(1)
    # u < 1 keeps the threshold below the total in fp32, so the first larger entry exists and has probability > 0.
    threshold = uniform.unsqueeze(1) * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, threshold, right=True).clamp_max_(logits.shape[1] - 1)
    if greedy:
        best = probabilities.argmax(1, keepdim=True)
        token = torch.where((inverse_temperature == 0).unsqueeze(1), best, token)
    return token.squeeze(1), probabilities.gather(1, token).log_().squeeze(1)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * as_int64(_MIX[0])
    value = (value ^ _shift(value, 27)) * as_int64(_MIX[1])
    return value ^ _shift(value, 31)
