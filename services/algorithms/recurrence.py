"""The recurrence that every estimator is: y_t = b_t + a_t y_{t+1} with y = 0 beyond the end.

a_t = 0 cuts: nothing from later reaches t, not even a NaN. a_t = 1 with b_t = 0 is the identity: the step might as well
not be there.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

Fold = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(b, a, y) -> b + a y, in the place of b."""
Product = Callable[[Tensor, Tensor], Tensor]
"""(a, b) -> a b, in the place of a."""


@torch.no_grad()
def recur(a: Tensor, b: Tensor) -> Tensor:
    """y [..., T] for a, b [..., T] of one floating dtype; exact for zeros in `a`, as nothing is ever divided.

    Not differentiable: advantages are constants of a loss. A value that is not finite reaches exactly what it should;
    to see to that costs a second pass, taken only when there is one.
    """
    if b.is_cuda and (kernel := _gpu_kernel()):
        return kernel(a.expand_as(b), b)
    y = _scan(a, b, Tensor.addcmul_, Tensor.mul_)
    return y if bool(y.sum().isfinite()) else _scan(a, b, _fold_exactly_into, _times_exactly_into)


@lru_cache(maxsize=1)
def _gpu_kernel() -> Callable[[Tensor, Tensor], Tensor] | None:
    """The Triton kernel, which comes with torch for GPUs; None where it does not."""
    try:
        from .scan_cuda import recur as on_gpu
    except ImportError:
        return None
    return on_gpu


def _scan(a: Tensor, b: Tensor, fold: Fold, times: Product) -> Tensor:
    """Two levels: with blocks of C steps, C operations over all blocks at once, then T / C over the blocks' ends.

    Blelloch 1990, "Prefix sums and their applications", with C the root of T.
    """
    if not b.numel():
        return b.clone()
    length = b.shape[-1]
    block = max(1, math.isqrt(length))
    blocks = -(-length // block)
    coefficient, y = (_by_step(x, block, blocks) for x in (a, b))
    reach = coefficient.clone()  # product of `a` from a step to the end of its block
    ys, factors, reaches = y.unbind(), coefficient.unbind(), reach.unbind()
    for step in range(block - 2, -1, -1):
        fold(ys[step], factors[step], ys[step + 1])
        times(reaches[step], reaches[step + 1])
    firsts, factors = (x[0].t().clone(memory_format=torch.contiguous_format).unbind() for x in (y, reach))
    behind = [torch.zeros_like(firsts[0])]  # y at the first step of the block behind, the last block's first
    for index in range(blocks - 1, 0, -1):
        behind.append(fold(firsts[index], factors[index], behind[-1]))
    fold(y, reach, torch.stack(behind[::-1], dim=1))
    return y.permute(1, 2, 0).reshape(len(ys[0]), -1)[:, :length].reshape(b.shape)


@torch.no_grad()
def windowed(a: Tensor, b: Tensor, n: int) -> Tensor:
    """The recurrence that looks n steps ahead: W_t = sum_{k < n} (prod_{j < k} a_{t+j}) b_{t+k}, shape of `b`.

    By doubling, in O(T log n): a window of 2m steps is one of m steps followed by another of m.
    """
    if n < 1:
        raise ValueError(f"a window needs at least one step, got {n}")
    total, reach = torch.zeros_like(b), torch.ones_like(b)
    window, factor, size, offset = b, a, 1, 0
    while n:
        if n & 1:
            total = _fold_exactly(total, reach, _ahead(window, offset))
            reach = _times_exactly(reach, _ahead(factor, offset))
            offset += size
        window = _fold_exactly(window, factor, _ahead(window, size))
        factor = _times_exactly(factor, _ahead(factor, size))
        size, n = 2 * size, n >> 1
    return total


def _fold_exactly_into(b: Tensor, a: Tensor, y: Tensor) -> Tensor:
    return b.copy_(_fold_exactly(b, a, y))


def _times_exactly_into(a: Tensor, b: Tensor) -> Tensor:
    return a.copy_(_times_exactly(a, b))


def _times_exactly(a: Tensor, b: Tensor) -> Tensor:
    """a b, and 0 where a is 0, also when b is not finite."""
    return torch.where(a == 0, 0.0, a * b)


def _fold_exactly(b: Tensor, a: Tensor, y: Tensor) -> Tensor:
    """b + a y, and b where a is 0, also when y is not finite."""
    return b + _times_exactly(a, y)


def _by_step(x: Tensor, block: int, blocks: int) -> Tensor:
    """A copy [block, rows, blocks] of x [..., T], zeros behind its end: one slice holds the same step of each block."""
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    over = block * blocks - x.shape[-1]
    padded = torch.nn.functional.pad(flat, (0, over)) if over else flat
    return padded.view(len(flat), blocks, block).permute(2, 0, 1).clone(memory_format=torch.contiguous_format)


def _ahead(x: Tensor, by: int) -> Tensor:
    """x_{t + by}, zero beyond the end."""
    return torch.nn.functional.pad(x[..., by:], (0, min(by, x.shape[-1])))
