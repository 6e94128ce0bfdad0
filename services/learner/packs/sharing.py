"""Prompts that several documents of a pack begin with are computed once.

The samples of a group share their prompt. Everything a layer does token by token (embedding, norms, projections, MLP)
runs on the kept positions only; attention sees the whole pack again. Causality makes the copies equal, so the result is
that of the whole pack, and so are the gradients: what flows into a copy is added to the position that was kept.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WORTH = 0.8
"""Sharing is used when at most this share of the positions is left."""


@dataclass(frozen=True, slots=True)
class Shared:
    """keep int64 [K]: positions of the pack that are computed. expand int64 [T]: the place of each position in keep."""

    keep: Tensor
    expand: Tensor

    def to(self, device: torch.device) -> "Shared":
        """The same on `device`."""
        return Shared(self.keep.to(device), self.expand.to(device))


def share(documents: Iterable[tuple[Sequence[int], int, int]]) -> Shared | None:
    """Find equal prompts. Each document: its ids, its positions in the pack, and how many of these read its prompt.

    None when sharing would not be worth its gathers.
    """
    keep: list[int] = []
    expand: list[int] = []
    known: dict[tuple[int, ...], int] = {}
    start = 0
    for ids, positions, prompt in documents:
        prefix = tuple(ids[:prompt])
        first = known.setdefault(prefix, len(keep))
        expand.extend(range(first, first + prompt))
        if first == len(keep):
            keep.extend(range(start, start + prompt))
        expand.extend(range(len(keep), len(keep) + positions - prompt))
        keep.extend(range(start + prompt, start + positions))
        start += positions
    if len(keep) > WORTH * start:
        return None
    return Shared(torch.tensor(keep), torch.tensor(expand))
