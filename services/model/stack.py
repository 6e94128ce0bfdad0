"""The stack of decoder layers of a causal language model, under whatever name its architecture keeps it."""

from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def layer_list(lm: Any) -> Any:
    """The module that holds the layers, or None: `layers` of the body, else the first list of what can be recomputed
    one by one (`h` of GPT-2, `decoder.layers` of OPT)."""
    body = lm.base_model
    found = getattr(body, "layers", None)
    if found is not None:
        return found
    lists = (module for module in body.modules() if isinstance(module, nn.ModuleList) and len(module))
    return next((one for one in lists if all(isinstance(layer, GradientCheckpointingLayer) for layer in one)), None)


def decoder_layers(lm: Any) -> list[nn.Module]:
    """The layers between embedding and head, in order; empty where there is no such stack."""
    return list(layer_list(lm) or [])
