"""The operations for which device, dtype and size decide which torch kernels are fastest."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_COLUMNS = 16
"""Fewest columns to attend over: torch's CPU softmax is ten times slower below one vector of 16 floats."""

_ONEDNN_PRODUCTS = 2_000_000
_onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [t, in] @ weight [out, in]^T + bias. No gradient."""
    if _onednn is not None and _large(x, weight):
        out: Tensor = _onednn(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


def add_linear(residual: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """residual [t, out] + x [t, in] @ weight [out, in]^T. No gradient."""
    if _onednn is not None and _large(x, weight):
        out: Tensor = _onednn.binary(x, residual, weight, None, "add")
        return out
    return torch.addmm(residual, x, weight.t())


def _large(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is worth its 9 us a call.

    torch gives fp32 products on CPU to MKL, which on AMD stays on AVX2; oneDNN uses AVX-512 there and is up to 2.2
    times faster.
    """
    large = x.shape[0] * weight.numel() >= _ONEDNN_PRODUCTS
    return large and x.dtype == torch.float32 and x.device.type == "cpu"


def normalise(x: Tensor, gain: Tensor | None, epsilon: float) -> Tensor:
    """Root-mean-square norm over the last dimension (Zhang and Sennrich 2019), times `gain` where one is given.

    In fp32 the result is x / hypot(|x|, sqrt(n epsilon)) = x / (sqrt(n) sqrt(mean(x^2) + epsilon)), three small
    operations for torch's eight on CPU; `gain`, or the matrix that follows, holds the factor sqrt(n).
    """
    fp32 = x.dtype == torch.float32
    out = x.div(_root(x, epsilon)) if fp32 else F.rms_norm(x, x.shape[-1:], None, epsilon)
    return out if gain is None else out.mul_(gain)


def rotate_(x: Tensor, gain: Tensor | None, epsilon: float, rotation: Tensor) -> None:
    """In place: normalise x [..., d] if a gain is given, then turn neighbouring pairs by complex64 [..., d / 2]."""
    if x.dtype == torch.float32:
        if gain is not None:
            x.div_(_root(x, epsilon)).mul_(gain)
        torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)).mul_(rotation)
    else:
        wide = x.float() if gain is None else normalise(x, gain, epsilon).float()
        pairs = torch.view_as_complex(wide.view(*x.shape[:-1], -1, 2))
        x.copy_(torch.view_as_real(pairs * rotation).view(x.shape))


def _root(x: Tensor, epsilon: float) -> Tensor:
    """hypot(|x|, sqrt(n epsilon)) over the last dimension, which is kept."""
    floor = _constant(math.sqrt(x.shape[-1] * epsilon), x.device)
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.hypot_(floor)


def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention of one query position a row, its heads grouped by their key-value head.

    q [n, kv_heads, group, d]; keys and values [n * kv_heads, columns, d]; mask additive [n, kv_heads, columns]. Returns
    [n, heads * d]. In fp32 two batched products and a softmax beat the fused kernel (1.5x on CPU at 64 rows); in
    other dtypes only the fused kernel keeps the scores in fp32.
    """
    n, kv_heads, columns = mask.shape
    d = q.shape[3]
    if q.dtype != torch.float32:
        keys, values = (each.reshape(n, kv_heads, columns, d) for each in (keys, values))
        return F.scaled_dot_product_attention(q, keys, values, mask.unsqueeze(2)).flatten(1)
    scores = torch.baddbmm(mask.view(-1, 1, columns), q.flatten(0, 1), keys.transpose(1, 2), alpha=d**-0.5)
    return torch.bmm(scores.softmax(2), values).view(n, -1)


@functools.cache
def _constant(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, device=device)
