"""Tiny models and random batches for the learner's tests: everything from a seed, float64 where it matters."""

import random
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from midflight.services.learner.network.policy import Policy
from midflight.services.learner.packs.packing import Document
from midflight.services.learner.step import RolloutBatch

VOCAB = 29
HOW_CUT = ("micro_batches", "pack/imbalance", "pack/fill")
"""What a report says of its micro-batches; all else does not depend on them."""


def tiny_lm(seed: int = 0, dtype: torch.dtype = torch.float64, kind: str = "qwen3", **overrides: Any) -> Any:
    """A Qwen3, or another kind of model, with two layers, grouped heads and tied embeddings."""
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**shape, **overrides})
    lm: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    for name, parameter in lm.named_parameters():
        if parameter.dim() == 2 or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return lm.to(dtype=dtype)


def tiny_policy(seed: int = 0, dtype: torch.dtype = torch.float64) -> Policy:
    """`tiny_lm` as a Policy."""
    return Policy(tiny_lm(seed, dtype))


def tiny_scorer(seed: int = 0, dtype: torch.dtype = torch.float64, **overrides: Any) -> Any:
    """transformers' sequence classifier with the body of `tiny_lm`, one label, and pad token 0."""
    causal = tiny_lm(seed, dtype, **overrides)
    causal.config.num_labels, causal.config.pad_token_id = 1, 0
    made: Any = AutoModelForSequenceClassification.from_config(causal.config).to(dtype)  # type: ignore[no-untyped-call]
    made.base_model.load_state_dict(causal.base_model.state_dict())
    with torch.no_grad():
        made.score.weight.copy_(torch.linspace(-1, 1, made.score.weight.numel())[None])
    return made


def random_document(rng: random.Random, name: str, shortest: int = 2, longest: int = 12) -> Document:
    """A prompt, then tokens of which some (at least one) were sampled, as after tool calls."""
    n = rng.randint(shortest, longest)
    ids = [rng.randrange(VOCAB) for _ in range(n)]
    mask = [t > 0 and rng.random() < 0.6 for t in range(n)]
    mask[-1] = True
    logp = [-3 * rng.random() for _ in range(n)]
    return Document(name, ids, mask, logp, [rng.randrange(3) for _ in range(n)])


def random_batch(seed: int, groups: int = 3, members: int = 4) -> RolloutBatch:
    """groups * members samples with random rewards, at version 3."""
    rng = random.Random(seed)
    n = groups * members
    documents = [random_document(rng, str(i)) for i in range(n)]
    rewards = torch.tensor([rng.random() for _ in range(n)], dtype=torch.float64)
    return RolloutBatch(documents, rewards, torch.arange(n) // members, version=3)


def gradients(module: torch.nn.Module) -> torch.Tensor:
    """All gradients of `module`, flat."""
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).clone()
