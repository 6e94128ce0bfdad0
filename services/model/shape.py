"""A model's config.json as it is written: read, and refused where it does not say how large the model is."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from midflight.kernel.mistake import UserMistake

from .build import model_config
from .tokenizer import load_tokenizer

NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""What transformers would take from the library's defaults, of a model that may be ten times as large."""
POSITIVE = (*NEEDED, "num_key_value_heads", "intermediate_size", "head_dim")


def read_config(section: Mapping[str, Any]) -> Any:
    """The transformers configuration that a `model` section names.

    Raises UserMistake, naming the path and the reason, when there is none, when it leaves out a size, and when it is
    not of a decoder of text alone.
    """
    path = section.get("path")
    try:
        if not path:
            return model_config(section["build"], load_tokenizer(section.get("tokenizer") or "bytes"))
        written = _written(str(path))
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:  # transformers raises anything for values of wrong types, and of its own validation
        where = f"cannot read a model's config.json from {str(path)!r}: " if path else ""
        gone = path and os.path.isabs(path) and not os.path.isdir(path)  # else taken for a name on the hub
        raise UserMistake(f"model: {where}{'no such folder' if gone else reason(error)}") from error
    if why := _lacks(written, config):
        raise UserMistake(f"model: the config.json of {str(path)!r} {why}")
    return config


def reason(error: Exception) -> str:
    """Of one that transformers or PyTorch raises, in a line: its first, and the next where that ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])


def _written(path: str) -> dict[str, Any]:
    file = Path(path) / "config.json"
    if not file.is_file():
        found, _ = PreTrainedConfig.get_config_dict(path)
        return dict(found)
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    for name in POSITIVE:
        if isinstance(value := found.get(name), int) and value < 1:
            raise ValueError(f"{name} is {value}: it must be above zero")
    return found


def _lacks(written: dict[str, Any], config: Any) -> str:
    """Why what is written is not a model to train, or nothing."""
    kind = config.model_type
    if config.get_text_config() is not config:
        return f"is of {kind}, which reads more than text: give the folder of a model of text alone"
    if getattr(config, "is_encoder_decoder", False):
        return f"is of {kind}, an encoder-decoder: give the folder of a causal language model"
    names = getattr(config, "attribute_map", {})
    own = {name: names.get(name, name) for name in NEEDED if hasattr(config, name)}
    missing = [name for called, name in own.items() if called not in written and name not in written]
    if missing:
        return f"does not say {', '.join(missing)}: add what the model has"
    sizes = {name: value for name in POSITIVE if isinstance(value := getattr(config, name, None), int)}
    small = next((name for name, value in sizes.items() if value < 1), None)
    if small:
        return f"has {names.get(small, small)} {sizes[small]}: it must be above zero"
    heads, pairs = sizes.get("num_attention_heads", 0), sizes.get("num_key_value_heads", 1)
    return f"has {heads} heads, which do not divide by num_key_value_heads {pairs}" if heads % pairs else ""
