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

from midflight.kernel.mistake import UserMistake

from .attention import packed_attention

APART = "midflight_packed_apart"
"""Name under which `packed_attention` is registered as a call that is not looked into."""


def compile_layers(lm: Any, layers: list[Any]) -> None:
    """Let the decoder layers of a model compute as compiled code, made at their first use; parameters keep their names.

    What recomputes a layer, and FSDP, stay outside of it. Raises UserMistake for a model without a stack of layers, and
    where there is nothing that makes code for its device.
    """
    if not layers:
        raise UserMistake(f"compile: {type(lm).__name__} has no stack of decoder layers to be compiled: leave it out")
    must_make_code(lm.device)
    AttentionInterface.register(APART, torch.compiler.disable(packed_attention))  # type: ignore[no-untyped-call]
    lm.set_attn_implementation(APART)
    for layer in layers:
        layer.compiled = compiled(inspect.unwrap(type(layer).forward))
        layer.forward = MethodType(_forward, layer)


def must_make_code(device: torch.device) -> None:
    """Raises UserMistake when there is no compiler for a device."""
    from torch._inductor import cpp_builder, exc  # seconds, for those who compile
    from torch.utils._triton import has_triton

    if device.type == "cpu":
        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler as error:
            raise UserMistake("compile: needs a C++ compiler on a CPU (CXX): install one, or leave it out") from error
    elif not has_triton():
        raise UserMistake(f"compile: needs Triton on {device}, which does not work here: leave it out")


@cache
def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Of a class of layers."""
    made: Callable[..., Any] = torch.compile(forward, dynamic=True)
    return made


def _forward(layer: Any, *inputs: Any, **named: Any) -> Any:
    """transformers' own, where it recomputes in `forward`, would do so inside of what is compiled."""
    if (
        getattr(layer, "gradient_checkpointing", False)
        and layer.training
        and hasattr(type(layer).forward, "__wrapped__")
    ):
        return layer._gradient_checkpointing_func(partial(layer.compiled, layer, **named), *inputs)
    return layer.compiled(layer, *inputs, **named)
