"""Columns of all action tokens, on every rank of a sequence, from those that each computed of its own tokens.

The ranks act as one: from equal columns each computes the same loss. So the gradient that comes back is the whole one
on every rank, and each takes the entries of its own tokens; nothing is summed here. The gradients of the parameters
are, over these ranks as well as over the data-parallel ones.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .zigzag import Cut


def everyones(columns: Sequence[Tensor], part: Cut | None) -> tuple[Tensor, ...]:
    """Columns [A] each, in the order of the pack, from this rank's own [a], of one dtype. All ranks must ask.

    part: what was this rank's; None: everything.
    """
    if part is None:
        return tuple(columns)
    return cast(tuple[Tensor, ...], _Everyones.apply(part, *columns))  # type: ignore[no-untyped-call]


class _Everyones(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Cut, *columns: Tensor) -> tuple[Tensor, ...]:
        ctx.actions = part.actions
        ctx.set_materialize_grads(False)
        sent = columns[0].new_zeros(len(columns), max(1, *part.counts))
        for row, column in zip(sent, columns, strict=True):
            row[: len(column)] = column
        got = [torch.empty_like(sent) for _ in part.counts]
        dist.all_gather(got, sent, group=part.sp.group)
        joined = torch.cat([x[:, :count] for x, count in zip(got, part.counts, strict=True)], 1)
        return tuple(row.index_select(0, part.order) for row in joined)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *(None if grad is None else grad.index_select(0, ctx.actions) for grad in grads))
