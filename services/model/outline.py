"""What a model's configuration says of its parameters: their names and shapes, without a byte of weights."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from midflight.kernel.mistake import UserMistake

from .build import Model, model_config
from .tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter by its Hugging Face name."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Numbers in it."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, slots=True)
class Outline:
    """A causal language model without weights.

    config: of transformers. layers: the parameters of each decoder layer; rest: all others, tied ones once. dtype: of
    the weights. head: the output layer's parameter, one of `rest`.
    """

    config: Any
    layers: tuple[tuple[Weight, ...], ...]
    rest: tuple[Weight, ...]
    head: Weight
    dtype: torch.dtype

    @property
    def weights(self) -> tuple[Weight, ...]:
        """All parameters."""
        return (*self.rest, *(weight for layer in self.layers for weight in layer))

    @property
    def numel(self) -> int:
        """Parameters, exactly."""
        return sum(weight.numel for weight in self.weights)


def outline(section: Mapping[str, Any]) -> Outline:
    """The topology's `model` section, or a mapping of the same keys -> its outline. Reads config.json, never weights.

    Raises UserMistake, naming the path or field, when there is no such configuration, or no stack of decoder layers.
    """
    config = read_config(section)
    dtype = torch.bfloat16 if section.get("dtype") == "bfloat16" else torch.float32
    with torch.device("meta"):
        model = bare_model(config, dtype)
    stack = list(getattr(model.base_model, "layers", []))
    if not stack:
        raise UserMistake(f"model: {type(model).__name__} has no stack of decoder layers to plan for")
    owner = {parameter: at for at, layer in enumerate(stack) for parameter in layer.parameters()}
    layers: list[list[Weight]] = [[] for _ in stack]
    rest: list[Weight] = []
    for name, parameter in model.named_parameters():
        at = owner.get(parameter)
        (rest if at is None else layers[at]).append(Weight(name, tuple(parameter.shape)))
    output = model.get_output_embeddings().weight
    (head,) = [Weight(n, tuple(p.shape)) for n, p in model.named_parameters() if p is output]
    return Outline(config, tuple(tuple(layer) for layer in layers), tuple(rest), head, dtype)


def read_config(section: Mapping[str, Any]) -> Any:
    """The transformers configuration that the section names. Raises UserMistake when there is none."""
    path = section.get("path")
    try:
        if not path:
            return model_config(section["build"], load_tokenizer(section.get("tokenizer") or "bytes"))
        return AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    except (OSError, ValueError) as error:
        where = f"cannot read a model's config.json from {str(path)!r}: " if path else ""
        gone = path and os.path.isabs(path) and not os.path.isdir(path)  # else taken for a name on the hub
        raise UserMistake(f"model: {where}{'no such folder' if gone else str(error).splitlines()[0]}") from error


def bare_model(config: Any, dtype: torch.dtype, layers: int | None = None) -> Model:
    """A model of that configuration on the default device, its first `layers` only if given.

    Raises UserMistake when transformers knows no causal language model of that kind.
    """
    config = copy.deepcopy(config)
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise UserMistake(f"model: {str(error).splitlines()[0]}") from error
