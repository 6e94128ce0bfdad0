"""Attention of some queries to some keys, with what it takes to put such blocks together; and its gradient.

out = softmax(scaling * q k^T) v and lse = log sum exp(scaling * q k^T), so that blocks of the same queries merge into
attention over the keys of all; the gradient of a block from the merged out and lse is its exact share of the whole
(FlashAttention, arXiv 2205.14135; ring attention, arXiv 2310.01889).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
"""What the CUDA kernel takes."""


@dataclass(frozen=True, slots=True)
class Side:
    """The queries of a block, or its keys: S segments, none empty, but there may be none.

    rows: int64, those of a rank's positions that take part; None is all. ends: int32 [S + 1] on the device, [0, end of
    each segment] among the rows; `lengths` are the same on the host.
    """

    rows: Tensor | None
    ends: Tensor
    lengths: list[int]


@dataclass(frozen=True, slots=True)
class Block:
    """Segments of queries, each with the segment of keys it attends to.

    causal: queries and keys are the same positions, and none attends to a later one.
    """

    queries: Side
    keys: Side
    causal: bool

    def spans(self) -> Iterator[tuple[slice, slice]]:
        """The rows of each segment: among those of the queries, among those of the keys."""
        row = key = 0
        for queries, keys in zip(self.queries.lengths, self.keys.lengths, strict=True):
            yield slice(row, row + queries), slice(key, key + keys)
            row, key = row + queries, key + keys


def attend(block: Block, q: Tensor, kv: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """(out [T, H, D], lse [T, H]) of the rows of `block`: q [T, H, D], keys and values [2, U, Hk, D].

    Query head h reads key head h // (H / Hk). lse is at least float32, as what is merged from it must be.
    """
    if q.is_cuda:
        return cuda_attend(block, q, kv, scaling)
    k, v = kv.repeat_interleave(q.shape[1] // kv.shape[2], 2)
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
    for rows, keys in block.spans():
        one, its = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            _batch(q[rows]), _batch(k[keys]), _batch(v[keys]), 0.0, block.causal, scale=scaling
        )
        out[rows], lse[rows] = one[0].transpose(0, 1), its[0].t()
    return out, lse


def attend_backward(
    block: Block, grad: Tensor, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Gradients of q and kv, shaped as these; out and lse are the merged ones, grad is that of the merged out."""
    if q.is_cuda:
        return cuda_attend_backward(block, grad, q, kv, out, lse, scaling)
    shared = q.shape[1] // kv.shape[2]
    k, v = kv.repeat_interleave(shared, 2)
    dq, (dk, dv) = torch.empty_like(q), (torch.empty_like(k), torch.empty_like(v))
    for rows, keys in block.spans():
        own = (_batch(x[at]) for x, at in ((grad, rows), (q, rows), (k, keys), (v, keys), (out, rows)))
        dq_one, dk_one, dv_one = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *own, lse[rows].t()[None].contiguous(), 0.0, block.causal, scale=scaling
        )
        for total, x, at in ((dq, dq_one, rows), (dk, dk_one, keys), (dv, dv_one, keys)):
            total[at] = x[0].transpose(0, 1)
    return dq, torch.stack([dk, dv]).view(*kv.shape[:3], shared, kv.shape[3]).sum(3)


def _batch(x: Tensor) -> Tensor:
    """[L, H, D] as the kernels of a batch want it: [1, H, L, D]."""
    return x.transpose(0, 1)[None]


# What follows has not run on a GPU: it is written from the kernels' schema and from how torch.nn.attention.varlen calls
# them. It is these and not flash-attn's, which keeps what gives lse and takes it back private and changes it.


def cuda_attend(block: Block, q: Tensor, kv: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """`attend` by torch's variable-length kernel. Raises ValueError for a type it does not take."""
    if q.dtype not in HALF:
        raise ValueError(f"sequence parallelism on CUDA attends in bfloat16 or float16, not {q.dtype}: set bf16")
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, *kv, *_segments(block), 0.0, block.causal, False, scale=scaling
    )
    return out, lse.t()


def cuda_attend_backward(
    block: Block, grad: Tensor, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """`attend_backward` by torch's variable-length kernel."""
    unread = torch.empty(2, dtype=torch.uint64, device=q.device)  # the state of a dropout that there is not
    own = (grad, q, *kv, out, lse.t().contiguous(), *_segments(block), 0.0, block.causal, unread, unread[:0])
    dq, dk, dv = torch.ops.aten._flash_attention_backward(*own, scale=scaling)
    return dq, torch.stack([dk, dv])


def _segments(block: Block) -> tuple[Tensor, Tensor, int, int]:
    queries, keys = block.queries, block.keys
    return queries.ends, keys.ends, max(queries.lengths), max(keys.lengths)
