"""Causal attention over segments cut zigzag over the ranks of a group: keys and values go round, queries stay.

At step s a rank holds the keys of rank `r - s` (mod R), and gives them to its right while it attends to them. What
came from an earlier rank has only its fronts in the past of these queries, and all of them see it; what came from a
later one is seen by the backs only, whole (after zhuzilin/ring-flash-attention, zigzag).
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .blocks import Block, Side, attend, attend_backward
from .peers import Place
from .zigzag import halves


@dataclass(frozen=True, slots=True)
class Ring:
    """A rank's work on one pack: blocks[s] is for the keys of rank `source(s)`; sizes are positions of each rank, at
    least the one that is computed for nothing and is in no block."""

    sp: Place
    sizes: list[int]
    blocks: list[Block]

    @classmethod
    def over(cls, lengths: Tensor, sp: Place, device: torch.device) -> "Ring":
        """For segments of `lengths` int64 [S], on the host."""
        parts = halves(lengths, sp.count)
        sources = [(sp.rank - step) % sp.count for step in range(sp.count)]
        blocks = [_block(parts[sp.rank], parts[source], sp.rank, source, device) for source in sources]
        return cls(sp, parts.sum((1, 2)).clamp(min=1).tolist(), blocks)

    def source(self, step: int) -> int:
        """The rank whose keys are here at `step`; after the last step they are home."""
        return (self.sp.rank - step) % self.sp.count

    def pass_on(self, held: Tensor, step: int) -> "Passing":
        """Start to give `held` [2, rows, ...] of `step` to the right, and to receive that of the next from the left."""
        coming = held.new_empty(held.shape[0], self.sizes[self.source(step + 1)], *held.shape[2:])
        right, left = ((self.sp.rank + by) % self.sp.count for by in (1, -1))
        group = self.sp.group or dist.group.WORLD
        assert group is not None
        ends = [(dist.isend, held, right), (dist.irecv, coming, left)]
        pairs = [dist.P2POp(do, x, dist.get_global_rank(group, to), group) for do, x, to in ends]
        return Passing(dist.batch_isend_irecv(pairs), held, coming)


@dataclass(frozen=True, slots=True)
class Passing:
    """A tensor on its way to the right, and one that comes."""

    works: list[dist.Work]
    held: Tensor
    coming: Tensor

    def arrived(self) -> Tensor:
        """What came, when it is there and the other one is gone. Raises after the group's time limit."""
        for work in self.works:
            work.wait()
        return self.coming


def _block(own: Tensor, theirs: Tensor, rank: int, source: int, device: torch.device) -> Block:
    """own, theirs int64 [S, 2]: front and back of each segment, of the queries and of the keys."""
    queries = torch.tensor([rank >= source, True]).expand_as(own)
    keys = torch.tensor([True, rank <= source]).expand_as(theirs)
    met = ((own * queries).sum(1) > 0) & ((theirs * keys).sum(1) > 0)
    queries, keys = queries & met[:, None], keys & met[:, None]
    return Block(_side(own, queries, device), _side(theirs, keys, device), causal=rank == source)


def _side(sizes: Tensor, chosen: Tensor, device: torch.device) -> Side:
    """The chosen of the parts of segments, both [S, 2], without the segments of which none is."""
    there = chosen.flatten().repeat_interleave(sizes.flatten())
    lengths = (sizes * chosen).sum(1)[chosen.any(1)]
    ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
    return Side(None if there.all() else there.nonzero().squeeze(1).to(device), ends.to(device), lengths.tolist())


def ring_attention(q: Tensor, k: Tensor, v: Tensor, ring: Ring, scaling: float) -> Tensor:
    """q [t, H, D], k and v [t, Hk, D] of this rank's t positions -> [t, H, D]. All ranks of the ring must come.

    Exact: the result, and every gradient, is that of attention over whole segments. Its backward pass goes round too.
    """
    return cast(Tensor, _Ring.apply(q, k, v, ring, scaling))  # type: ignore[no-untyped-call]


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ring: Ring, scaling: float) -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        out, lse = torch.zeros_like(q, dtype=wide), q.new_full(q.shape[:2], float("-inf"), dtype=wide)
        held, last = torch.stack([k, v]), len(ring.blocks) - 1
        for step, block in enumerate(ring.blocks):
            passing = ring.pass_on(held, step) if step < last else None
            if block.queries.lengths:
                at = block.queries.rows
                _merge(out, lse, at, *attend(block, _rows(q, at), _rows(held, block.keys.rows, 1), scaling))
            held = passing.arrived() if passing else held
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.ring, ctx.scaling = ring, scaling
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        grad = grad.contiguous()
        ring: Ring = ctx.ring
        dq = torch.zeros_like(q, dtype=lse.dtype)
        held, last = torch.stack([k, v]), len(ring.blocks) - 1
        d_held, d_passing = torch.zeros_like(held, dtype=lse.dtype), None
        for step, block in enumerate(ring.blocks):
            passing = ring.pass_on(held, step) if step < last else None
            found = None
            if block.queries.lengths:
                at = block.queries.rows
                given = _rows(grad, at), _rows(q, at), _rows(held, block.keys.rows, 1), _rows(out, at), _rows(lse, at)
                found = attend_backward(block, *given, ctx.scaling)
            d_held = d_passing.arrived() if d_passing else d_held
            if found:
                _add(dq, 0, block.queries.rows, found[0])
                _add(d_held, 1, block.keys.rows, found[1])
            d_passing = ring.pass_on(d_held, step) if last else None
            held = passing.arrived() if passing else held
        d_held = d_passing.arrived() if d_passing else d_held
        dk, dv = d_held.to(k.dtype)
        return dq.to(q.dtype), dk, dv, None, None


def _rows(x: Tensor, at: Tensor | None, dim: int = 0) -> Tensor:
    return x if at is None else x.index_select(dim, at)


def _add(total: Tensor, dim: int, at: Tensor | None, x: Tensor) -> None:
    if at is None:
        total.add_(x)
    else:
        total.index_add_(dim, at, x.to(total.dtype))


def _merge(out: Tensor, lse: Tensor, at: Tensor | None, block: Tensor, block_lse: Tensor) -> None:
    """Into out [T, H, D] and lse [T, H], at these rows, one more block of keys."""
    before, before_lse = _rows(out, at), _rows(lse, at)
    share = torch.sigmoid(block_lse - before_lse)[..., None]
    merged, merged_lse = before + share * (block - before), torch.logaddexp(before_lse, block_lse)
    if at is None:
        out.copy_(merged)
        lse.copy_(merged_lse)
    else:
        out.index_copy_(0, at, merged)
        lse.index_copy_(0, at, merged_lse)
