"""The recurrence on a GPU: one Triton program a row, blocks from its end, each one associative scan (Blelloch 1990).

Two steps compose as (a, b) after (a', b') = (a a', b + a b'). Where a is 0 nothing of what is behind is looked at, so
that a NaN reaches exactly what it should.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


@triton.jit
def _compose(a_behind, b_behind, a, b):
    on = a != 0
    return tl.where(on, a * a_behind, 0.0), tl.where(on, b + a * b_behind, b)


@triton.jit
def _rows(a_at, b_at, y_at, length, block: tl.constexpr):
    base = tl.program_id(0).to(tl.int64) * length
    lane = tl.arange(0, block)
    behind = tl.load(b_at + base) * 0
    behind = tl.where(behind == 0, behind, 0.0)
    for back in range(tl.cdiv(length, block)):
        place = length - (back + 1) * block + lane
        there = place >= 0
        a = tl.load(a_at + base + place, mask=there, other=1.0)
        b = tl.load(b_at + base + place, mask=there, other=0.0)
        reach, total = tl.associative_scan((a, b), 0, _compose, reverse=True)
        y = tl.where(reach != 0, total + reach * behind, total)
        tl.store(y_at + base + place, y, mask=there)
        behind = tl.sum(tl.where(lane == 0, y, 0.0))


def recur(a: Tensor, b: Tensor) -> Tensor:
    """y_t = b_t + a_t y_{t+1} for a, b [..., T] on a GPU, float32 or float64."""
    a, b = a.contiguous(), b.contiguous()
    y = torch.empty_like(b)
    if b.numel():
        length = b.shape[-1]
        with torch.cuda.device(b.device):
            _rows[(b.numel() // length,)](a, b, y, length, block=min(BLOCK, triton.next_power_of_2(length)))
    return y
