"""What a model's configuration says of its parameters: their names and shapes, without a byte of weights."""

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from midflight.kernel.mistake import UserMistake

from .build import Model
from .shape import read_config, reason
from .stack import decoder_layers

Pair = tuple[int, int]
"""Numbers of two layers of one kind, which are the same where there is one such layer only."""
ALIKE: Pair = (0, 1)
"""Of a stack of at least two that are all of one kind."""


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
    def kinds(self) -> list[tuple[int, Pair]]:
        """Layers that are alike, by their shapes and by what transformers calls them: how many, and two of them."""
        types = getattr(self.config, "layer_types", None) or [""] * len(self.layers)
        found: dict[Any, list[int]] = defaultdict(list)
        for at, (layer, kind) in enumerate(zip(self.layers, types, strict=True)):
            found[kind, tuple(weight.shape for weight in layer)].append(at)
        return [(len(numbers), (numbers[0], numbers[:2][-1])) for numbers in found.values()]

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
    stack, output = decoder_layers(model), model.get_output_embeddings()
    if not stack or output is None:
        lacks = "output layer" if stack else "stack of decoder layers"
        raise UserMistake(f"model: {type(model).__name__} has no {lacks} that is found, and cannot be planned")
    owner = {parameter: at for at, layer in enumerate(stack) for parameter in layer.parameters()}
    layers: list[list[Weight]] = [[] for _ in stack]
    rest: list[Weight] = []
    for name, parameter in model.named_parameters():
        at = owner.get(parameter)
        (rest if at is None else layers[at]).append(Weight(name, tuple(parameter.shape)))
    (head,) = [Weight(n, tuple(p.shape)) for n, p in model.named_parameters() if p is output.weight]
    return Outline(config, tuple(tuple(layer) for layer in layers), tuple(rest), head, dtype)


def bare_model(config: Any, dtype: torch.dtype, layers: int | None = None) -> Model:
    """A model of that configuration on the default device, its first `layers` only if given.

    Raises UserMistake when transformers knows no causal language model of that kind, or cannot make it of these sizes.
    """
    config = copy.deepcopy(config)
    if layers is not None:
        config.num_hidden_layers = layers
        if "layer_types" in vars(config) and config.layer_types:  # Mamba's are computed
            config.layer_types = config.layer_types[:layers]
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserMistake(
            f"model: transformers has no causal language model of kind {config.model_type!r}, and no other kind is "
            "trained here: name another folder"
        )
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever an architecture's own code raises for sizes that do not go together
        raise UserMistake(f"model: a {config.model_type} of its config.json cannot be made: {reason(error)}") from error
