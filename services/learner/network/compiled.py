"""Decoder layers as compiled code, one by one: all of a kind share what is compiled.

Attention over packed documents is not compiled: documents end elsewhere in each pack, and it would be compiled anew. A
layer is two pieces then, before attention and behind it, for any number of positions.
"""

import inspect
from collections.abc import Callable
from functools import cache, partial
from types import MethodType
from typing import Any

import torch
from transformers import AttentionInterface

from .attention import packed_attention

APART = "midflight_packed_apart"
"""Name under which `packed_attention` is registered as a call that is not looked into."""


def compile_layers(lm: Any, layers: list[Any]) -> None:
    """Let the decoder layers of a model compute as compiled code, made at their first use; parameters keep their names.

    What recomputes a layer, and FSDP, stay outside of it.
    """
    AttentionInterface.register(APART, torch.compiler.disable(packed_attention))  # type: ignore[no-untyped-call]
    lm.set_attn_implementation(APART)
    for layer in layers:
        layer.compiled = compiled(inspect.unwrap(type(layer).forward))
        layer.forward = MethodType(_forward, layer)


@cache
def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Of a class of layers."""
    made: Callable[..., Any] = torch.compile(forward, dynamic=True)
    return made


def _forward(layer: Any, *inputs: Any, **named: Any) -> Any:
    """transformers' own would recompute inside of what is compiled."""
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(partial(layer.compiled, layer, **named), *inputs)
    return layer.compiled(layer, *inputs, **named)
