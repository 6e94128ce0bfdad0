"""How the positions of a pack are divided over the ranks of a sequence, and how their columns come together again.

Each segment of n positions is cut into 2R chunks for R ranks, chunk i from n * i // 2R on; rank r owns chunk r, its
front, and chunk 2R - 1 - r, its back. The later a position the more it attends to, so an early chunk with a late one
is the same work for every rank. Nothing is padded: chunks differ by a position, and a short segment has empty ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .peers import Place


@dataclass(frozen=True, slots=True)
class Cut:
    """This rank's part of a pack of S segments, T positions and A action tokens: t positions, a action tokens.

    lengths int64 [S], on the host: of the segments. positions int64 [t]: its positions in the pack, ascending; so of
    each segment first the front, then the back. A rank that owns none has position 0, which it computes for nothing:
    models do not run on no positions. actions int64 [a]: which action tokens are its own. rows int64 [a]: where these
    stand in `positions`. counts: action tokens of each rank. order int64 [A]: where each action token stands among
    every rank's own, laid rank after rank.
    """

    sp: Place
    lengths: Tensor
    positions: Tensor
    actions: Tensor
    rows: Tensor
    counts: list[int]
    order: Tensor


def cut(cu_seqlens: Tensor, actions: Tensor, sp: Place) -> Cut | None:
    """The part of rank `sp.rank` of `sp.count`; None where it is alone and has everything.

    cu_seqlens int [S + 1]: ends of the segments. actions int64 [A]: positions of the action tokens.
    """
    if sp.count == 1:
        return None
    lengths, at = cu_seqlens.diff().long().cpu(), actions.cpu()
    owner = owners(lengths, sp.count)
    mine, by = owner == sp.rank, owner[at]
    own = (by == sp.rank).nonzero().squeeze(1)
    counts: list[int] = by.bincount(minlength=sp.count).tolist()
    positions = mine.nonzero().squeeze(1) if mine.any() else torch.zeros(1, dtype=torch.int64)
    rows = (mine.cumsum(0) - 1)[at[own]]
    order = by.argsort(stable=True).argsort()
    positions, own, rows, order = (x.to(actions.device) for x in (positions, own, rows, order))
    return Cut(sp, lengths, positions, own, rows, counts, order)


def chunks(lengths: Tensor, ranks: int) -> Tensor:
    """Sizes int64 [S, 2 * ranks] of the chunks of segments of `lengths` [S]."""
    number = 2 * ranks
    return (lengths[:, None] * torch.arange(number + 1) // number).diff()


def halves(lengths: Tensor, ranks: int) -> Tensor:
    """Sizes int64 [ranks, S, 2] of what each rank owns of each segment: its front, its back."""
    sizes = chunks(lengths, ranks).t()
    return torch.stack([sizes[:ranks], sizes.flip(0)[:ranks]], 2)


def owners(lengths: Tensor, ranks: int) -> Tensor:
    """The rank, int64 [T], that owns each position."""
    there = torch.arange(ranks)
    return torch.cat([there, there.flip(0)]).repeat(len(lengths)).repeat_interleave(chunks(lengths, ranks).flatten())
