"""What the data-parallel ranks of a learner divide among them, and what they tell each other.

Every rank holds the whole batch, which is small, and does by itself all that is cheap; forward and backward passes are
divided, a micro-batch each, round after round. What they found is exchanged. So whatever looks at a whole batch
(advantages, masks, denominators, metrics) is the same code on the same numbers for one rank and for many.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """This rank's place among `count` along one dimension of the mesh, and their process group; none: it is alone."""

    rank: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None


@dataclass(frozen=True, slots=True)
class Peers(Place):
    """The ranks that divide a batch. What computes one micro-batch together is one of them, and each of its ranks has
    a group of its own with those at the same place of the others."""

    def rounds(self, number: int) -> list[tuple[int, bool]]:
        """What this rank computes of `number` micro-batches, one a round, and whether that counts.

        Collectives are inside a model's passes, so in the last round those for whom nothing is left compute what
        another does, for nothing.
        """
        rounds = -(-number // self.count)
        first = [turn * self.count for turn in range(rounds)]
        mine = [at + self.rank for at in first]
        return [(own, True) if own < number else (at, False) for own, at in zip(mine, first, strict=True)]

    def exchange(self, own: Sequence[Tensor], sizes: Sequence[int], like: Tensor) -> list[Tensor]:
        """Columns of every micro-batch, in order, from those of this rank's.

        own: [K, A] each, K columns of the A tokens of one micro-batch. sizes: A of all. like: a tensor of K rows, with
        the dtype and device, for a rank that has none.
        """
        if self.count == 1:
            return list(own)
        shares = [list(sizes[rank :: self.count]) for rank in range(self.count)]
        sent = like.new_zeros(len(like), max(map(sum, shares)))
        if own:
            mine = torch.cat(list(own), 1)
            sent[:, : mine.shape[1]] = mine
        got = [torch.empty_like(sent) for _ in shares]
        dist.all_gather(got, sent, group=self.group)
        parts = [torch.split(x[:, : sum(share)], share, 1) for x, share in zip(got, shares, strict=True)]
        return [parts[at % self.count][at // self.count] for at in range(len(sizes))]

    def total(self, values: Iterable[float]) -> float:
        """Sum over all ranks of what each has found."""
        own = sum(values)
        if self.count == 1:
            return own
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        summed = torch.tensor(own, dtype=torch.float64, device=device)
        dist.all_reduce(summed, group=self.group)
        return summed.item()


ALONE = Peers()
