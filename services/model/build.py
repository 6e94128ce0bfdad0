"""Causal language models: built from a few numbers, or loaded from disk or the hub, and saved again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from .tokenizer import Tokenizer

Model: TypeAlias = Any
"""A `transformers.PreTrainedModel` with a language-model head; transformers publishes no types."""

_ARCHITECTURES = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
_ROPE_THETA = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Shape of a model made from scratch; the defaults are the demo's 0.12 M parameters.

    `init_std` is the standard deviation of every matrix; norms start at one. Raises ValueError on a shape that
    cannot be built.
    """

    architecture: Literal["qwen3", "llama"] = "qwen3"
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 16
    intermediate_size: int = 192
    max_position_embeddings: int = 256
    init_std: float = 0.1
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.architecture not in _ARCHITECTURES:
            raise ValueError(f"architecture {self.architecture!r}: give one of {', '.join(_ARCHITECTURES)}")
        for name in self.__slots__:
            value = getattr(self, name)
            if not isinstance(value, str | bool) and value <= 0:
                raise ValueError(f"{name} must be above zero, got {value}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")


def model_config(build: Build | Mapping[str, Any], tokenizer: Tokenizer) -> Any:
    """The transformers configuration of a built model: its vocabulary size and special ids are the tokenizer's."""
    shape = build if isinstance(build, Build) else Build(**build)
    return _ARCHITECTURES[shape.architecture][0](
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.max_position_embeddings,
        initializer_range=shape.init_std,
        tie_word_embeddings=shape.tie_word_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_THETA},
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        attention_dropout=0.0,
    )


def build_model(
    build: Build | Mapping[str, Any],
    tokenizer: Tokenizer,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Make a model whose every matrix is N(0, init_std), from `seed` alone; the global generator is left alone.

    The vocabulary size and the pad and end ids are the tokenizer's. The matrices are drawn in float32 and then cast.
    """
    shape = build if isinstance(build, Build) else Build(**build)
    with torch.random.fork_rng(devices=[]):
        model = _made(shape, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, shape.init_std, generator=generator)
    return model.to(dtype)


def frame_of(build: Build | Mapping[str, Any], tokenizer: Tokenizer, dtype: torch.dtype = torch.float32) -> Model:
    """The same model without its weights: every tensor is on the meta device."""
    with torch.device("meta"):
        return _made(build if isinstance(build, Build) else Build(**build), tokenizer).to(dtype)


def load_frame(path: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """What `load_model` loads, without its weights: every tensor is on the meta device. Raises ValueError as that."""
    try:
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=dtype, trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read a causal LM's config.json in {str(path)!r}: {_first_line(error)}") from error


def load_model(path: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """Load any Hugging Face causal LM with safetensors from a directory or hub id; code from the repository never runs.

    Raises ValueError, naming `path`, when there is no such model.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(
            str(path), dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load a causal LM from {str(path)!r}: give a directory with config.json and safetensors "
            f"or a hub id ({_first_line(error)})"
        ) from error


def save_model(model: Model, tokenizer: Tokenizer, directory: str | Path) -> None:
    """Write model and tokenizer as a Hugging Face directory that `load_model` and any HF tool can read."""
    model.save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))


def _made(shape: Build, tokenizer: Tokenizer) -> Model:
    return _ARCHITECTURES[shape.architecture][1](model_config(shape, tokenizer))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
