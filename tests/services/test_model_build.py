"""Models made from a config or loaded from disk."""

from pathlib import Path
from typing import Any

import pytest
import torch

from midflight.services.model.build import Build, build_model, load_model, save_model
from midflight.services.model.tokenizer import byte_tokenizer, load_tokenizer

TOKENIZER = byte_tokenizer()


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_saved_model_is_the_same(tmp_path: Path, architecture: str, tied: bool) -> None:
    """Save and load as a Hugging Face directory: equal logits, tokenizer and chat template."""
    shape = {"architecture": architecture, "tie_word_embeddings": tied}
    model = build_model(shape, TOKENIZER, seed=1)
    save_model(model, TOKENIZER, tmp_path)
    again, tokenizer = load_model(tmp_path), load_tokenizer(tmp_path)
    ids = torch.arange(10, 30).unsqueeze(0)
    with torch.inference_mode():
        assert torch.equal(model.eval()(ids).logits, again.eval()(ids).logits)
    messages = [{"role": "user", "content": "a é"}]
    assert tokenizer.apply_chat_template(messages) == TOKENIZER.apply_chat_template(messages)


def test_seed_decides_everything() -> None:
    """Same seed, same weights; other seed, others; the global generator is not touched."""
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, same, other = (build_model(Build(), TOKENIZER, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    pairs = [(dict(m.state_dict()), dict(first.state_dict())) for m in (same, other)]
    assert all(torch.equal(a[name], b[name]) for a, b in pairs[:1] for name in a)
    assert not torch.equal(*(each["model.embed_tokens.weight"] for each in pairs[1]))


def test_init_and_size() -> None:
    """Matrices are N(0, init_std), norms are one, and the demo's model has 0.12 M parameters."""
    model = build_model(Build(init_std=0.1), TOKENIZER, seed=0)
    assert 110_000 < sum(p.numel() for p in model.parameters()) < 130_000
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            assert abs(parameter.std().item() - 0.1) < 0.005, name
        else:
            assert bool((parameter == 1).all()), name


def test_dtype() -> None:
    """The model comes in the dtype asked for."""
    assert build_model(Build(), TOKENIZER, 0, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba': give one of qwen3, llama"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"hidden_size": 0}, "hidden_size must be above zero"),
    ],
)
def test_impossible_shapes(change: dict[str, Any], message: str) -> None:
    """A shape that cannot be built is refused by name."""
    with pytest.raises(ValueError, match=message):
        build_model(change, TOKENIZER, 0)


def test_missing_model(tmp_path: Path) -> None:
    """A directory without a model is named in the error."""
    with pytest.raises(ValueError, match="cannot load a causal LM from"):
        load_model(tmp_path)
