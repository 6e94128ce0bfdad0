"""The model a topology names: tokenizer and weights, from a directory or hub id, or built from a shape."""

from collections.abc import Mapping
from typing import Any

import torch

from midflight.kernel.mistake import UserMistake

from .build import Model, build_model, frame_of, load_frame, load_model
from .tokenizer import Tokenizer, load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def open_model(section: Mapping[str, Any], seed: int) -> tuple[Tokenizer, Model]:
    """The topology's `model` section -> (tokenizer, model on the CPU). The same section and seed give the same weights.

    Raises UserMistake, naming the path or the field, when it cannot be had.
    """
    dtype = DTYPES[section.get("dtype") or "float32"]
    path = section.get("path")
    try:
        tokenizer = load_tokenizer(section.get("tokenizer") or path or "bytes")
        if path:
            return tokenizer, load_model(path, dtype)
        return tokenizer, build_model(section["build"], tokenizer, seed, dtype)
    except ValueError as error:
        raise UserMistake(f"model: {error}") from error


def open_frame(section: Mapping[str, Any]) -> tuple[Tokenizer, Model]:
    """The same without weights: the model's tensors are on the meta device, in the section's dtype.

    Raises UserMistake as `open_model` does.
    """
    dtype = DTYPES[section.get("dtype") or "float32"]
    path = section.get("path")
    try:
        tokenizer = load_tokenizer(section.get("tokenizer") or path or "bytes")
        return tokenizer, load_frame(path, dtype) if path else frame_of(section["build"], tokenizer, dtype)
    except ValueError as error:
        raise UserMistake(f"model: {error}") from error


def end_ids(tokenizer: Tokenizer, model: Model) -> set[int]:
    """Tokens that end a response: the tokenizer's, and all that the model's generation configuration names."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = configured if isinstance(configured, list | tuple) else [configured]
    return {int(token) for token in (tokenizer.eos_token_id, *several) if token is not None}


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU if torch sees one, else the CPU. Raises UserMistake for a GPU that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserMistake(f"device {name}: torch sees {torch.cuda.device_count()} GPUs here; set it to cpu or auto")
    return device
