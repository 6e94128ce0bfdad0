"""Models and lengths that several benchmarks of the learner share."""

import random
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM


def qwen(
    hidden: int,
    layers: int,
    heads: int,
    vocab: int,
    *,
    pairs: int = 0,
    width: int = 0,
    longest: int = 8192,
    device: str = "cpu",
) -> Any:
    """A Qwen3 with random weights in float32, tied embeddings and an inner width of 3 `hidden`.

    pairs: key-value heads, half the heads when omitted. width: of a head, hidden / heads when omitted.
    """
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=pairs or heads // 2,
        head_dim=width or hidden // heads,
        max_position_embeddings=longest,
        tie_word_embeddings=True,
    )
    with torch.device(device):
        return Qwen3ForCausalLM(config)


def rl_lengths(count: int, longest: int, shortest: int = 16, seed: int = 3) -> list[int]:
    """Lengths like those of RL completions: lognormal, median 148, with a long tail."""
    rng = random.Random(seed)
    return [min(longest, max(shortest, int(rng.lognormvariate(5.0, 1.0)))) for _ in range(count)]
