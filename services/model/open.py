"""The model a topology names: tokenizer and weights, from a directory or hub id, or built from a shape."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from midflight.kernel.mistake import UserMistake

from .build import Model, build_model, frame_of, load_frame, load_model
from .tokenizer import Tokenizer, load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def open_model(section: Mapping[str, Any], seed: int) -> tuple[Tokenizer, Model]:
    """The topology's `model` section -> (tokenizer, model on the CPU). The same section and seed give the same weights.

    Raises UserMistake, naming the path or the field, when it cannot be had, or the tokenizer is not the model's.
    """
    dtype = DTYPES[section.get("dtype") or "float32"]
    path = section.get("path")
    try:
        tokenizer = tokenizer_of(section)
        if path:
            return fitting(tokenizer, load_model(path, dtype), section)
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
        tokenizer = tokenizer_of(section)
        if path:
            return fitting(tokenizer, load_frame(path, dtype), section)
        return tokenizer, frame_of(section["build"], tokenizer, dtype)
    except ValueError as error:
        raise UserMistake(f"model: {error}") from error


def tokenizer_of(section: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a `model` section: the one it names, else that of its folder, else bytes.

    Raises ValueError when there is none, and when it gives tokens other numbers than the tokenizer in the folder does:
    the model would read other text than it was trained on. One may have tokens that the other has not.
    """
    path, name = section.get("path"), section.get("tokenizer")
    tokenizer = load_tokenizer(name or path or "bytes")
    if not path or not name or str(name) == str(path) or not _has_tokenizer(Path(path)):
        return tokenizer
    named, own = tokenizer.get_vocab(), load_tokenizer(path).get_vocab()
    fewer, more = sorted((named, own), key=len)
    if fewer.items() <= more.items():
        return tokenizer
    raise ValueError(
        f"tokenizer {name} ({len(named)} tokens) is not the one that {path} was trained with ({len(own)} tokens): "
        "leave model.tokenizer out, or set it to null, for the folder's own"
    )


def fitting(tokenizer: Tokenizer, lm: Model, section: Mapping[str, Any]) -> tuple[Tokenizer, Model]:
    """Both, if the model has a row for every token. Raises ValueError.

    A folder's own tokenizer may name special tokens beyond them, which its texts never have (Gemma 3 has one such).
    """
    path, name = section["path"], section.get("tokenizer")
    rows = int(lm.get_input_embeddings().weight.shape[0])
    ids = set(tokenizer.get_vocab().values())
    if not name or str(name) == str(path):
        ids -= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    if ids and (most := max(ids)) >= rows:
        raise ValueError(
            f"tokenizer {name or path} has tokens up to number {most}, and the model in {path} has {rows} rows of "
            "embeddings: use the tokenizer it was trained with, or give the model more rows (resize_token_embeddings)"
        )
    return tokenizer, lm


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))


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
