"""Variable-length attention kernels on CUDA. Not yet run on a GPU: written from the kernels' documentation."""

import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, float], Tensor]


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, scaling: float
) -> Tensor | None:
    """Causal attention per document by flash-attn if it is importable, else by torch's own varlen kernel.

    q [T, H, D], k and v [T, Hk, D] -> [T, H, D]; None when no kernel takes these tensors (no such module,
    or neither bfloat16 nor float16), and the caller runs the bucketed path, which is plain torch.
    """
    kernel = _kernel()
    if kernel is None or q.dtype not in (torch.bfloat16, torch.float16):
        return None
    return kernel(q, k, v, cu_seqlens, longest, scaling)


@cache
def _kernel() -> Kernel | None:
    for build in (_flash_attn, _torch_varlen):
        try:
            return build()
        except ImportError:
            continue
    return None


def _flash_attn() -> Kernel:
    run: Callable[..., Tensor] = import_module("flash_attn").flash_attn_varlen_func

    def kernel(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, longest: int, scaling: float) -> Tensor:
        return run(q, k, v, cu, cu, longest, longest, softmax_scale=scaling, causal=True)

    return kernel


def _torch_varlen() -> Kernel:
    """torch 2.10 spells causality `is_causal`; from 2.12 a window of (-1, 0) means it."""
    run: Callable[..., Tensor] = import_module("torch.nn.attention.varlen").varlen_attn
    names = inspect.signature(run).parameters
    causal: dict[str, Any] = {"is_causal": True} if "is_causal" in names else {"window_size": (-1, 0)}
    grouped = "enable_gqa" in names

    def kernel(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, longest: int, scaling: float) -> Tensor:
        if grouped:
            return run(q, k, v, cu, cu, longest, longest, scale=scaling, enable_gqa=True, **causal)
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        return run(q, k, v, cu, cu, longest, longest, scale=scaling, **causal)

    return kernel
