"""Which model a run trains: one from disk, or one built small from its shape. Imports no torch."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from midflight.kernel.spec import Config, ModelPath, path_rule


class BuildConfig(Config):
    """The shape of a model with fresh random weights. The vocabulary size comes from the tokenizer."""

    architecture: Literal["qwen3", "llama"] = Field("qwen3", description="Architecture, by its name in transformers.")
    hidden_size: int = Field(ge=1, description="Width of the residual stream.")
    num_hidden_layers: int = Field(ge=1, description="Number of decoder layers.")
    num_attention_heads: int = Field(ge=1, description="Query heads per layer.")
    num_key_value_heads: int = Field(ge=1, description="Key and value heads per layer; divides the query heads.")
    head_dim: int = Field(ge=2, multiple_of=2, description="Width of one head; even, for rotary positions.")
    intermediate_size: int = Field(ge=1, description="Width of the gated feed-forward layer.")
    max_position_embeddings: int = Field(2048, ge=1, description="Longest sequence, in tokens.")
    init_std: float = Field(0.02, gt=0, description="Standard deviation of the initial weights.")
    tie_word_embeddings: bool = Field(True, description="Whether the output layer shares the input embedding.")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads ({self.num_key_value_heads}) must divide "
                f"num_attention_heads ({self.num_attention_heads})"
            )
        return self


class ModelConfig(Config):
    """The policy's starting point: exactly one of `path` and `build`."""

    path: ModelPath | None = Field(None, description="Folder of a Hugging Face causal language model.")
    build: BuildConfig | None = Field(None, description="Shape of a model to build with random weights.")
    tokenizer: Annotated[str, path_rule("bytes", exists=True)] = Field(
        "bytes",
        description="`bytes` (one token per byte) or a tokenizer's folder; that of `path` when omitted.",
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Number type of the weights.")

    @model_validator(mode="before")
    @classmethod
    def _tokenizer_of_path(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("path") is not None and value.get("tokenizer") is None:
            return {**value, "tokenizer": value["path"]}
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.path is None) == (self.build is None):
            raise ValueError("give exactly one of 'path' and 'build'")
        return self

    @property
    def shape(self) -> dict[str, Any]:
        """What the model's configuration says, by Hugging Face names; empty when it cannot be read."""
        if self.build:
            return self.build.model_dump()
        try:
            said = json.loads((Path(str(self.path)) / "config.json").read_text())
        except (OSError, ValueError):
            return {}  # told by who loads it
        text = said.get("text_config", said) if isinstance(said, dict) else None
        return text if isinstance(text, dict) else {}
