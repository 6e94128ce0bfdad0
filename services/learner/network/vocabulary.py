"""Whole distributions over a vocabulary of which each rank of a tensor-parallel group has the logits of a slice.

A position's numbers come out equal on all of these ranks, and so does the loss that is made of them. So a sum over the
ranks gives its gradient back as it is, and what every rank goes on with on its own slice has its gradients added up.
"""

from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from midflight.services.learner.group.slicing import added, fanned_out


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens `first` to `first + count` are here, the others on the other ranks of `group`; None: there are none."""

    first: int
    count: int
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, weight: Tensor) -> tuple[Self, Tensor]:
        """Of an output layer [V, H], which may be cut by rows over a mesh of one dimension; with the rows [v, H] that
        are here."""
        if not isinstance(weight, DTensor):
            return cls(0, len(weight)), weight
        mesh, own = weight.device_mesh, weight.to_local()
        return cls(mesh.get_local_rank() * len(own), len(own), mesh.get_group()), own

    def read(self, hidden: Tensor) -> Tensor:
        """Hidden states, the same on all ranks, for each to compute its logits from: their gradient is a sum."""
        return fanned_out(hidden, self.group) if self.group else hidden

    def own(self, weight: Tensor) -> Tensor:
        """The rows [v, H] of these tokens, of another output layer [V, H] that is whole here."""
        return weight[self.first : self.first + self.count]

    def log_softmax(self, logits: Tensor) -> Tensor:
        """[n, v] of [n, v], over all V tokens."""
        if not self.group:
            return logits.log_softmax(-1)
        top = logits.detach().amax(-1, keepdim=True)
        dist.all_reduce(top, dist.ReduceOp.MAX, self.group)
        total = added((logits - top).exp().sum(-1, keepdim=True), self.group)
        return logits - fanned_out(top + total.log(), self.group)

    def total(self, values: Tensor) -> Tensor:
        """[n], what each rank found on its slice, added up; in place."""
        return added(values, self.group) if self.group else values

    def picked(self, values: Tensor, tokens: Tensor) -> Tensor:
        """[n], the entries of [n, v] at `tokens` int64 [n], wherever these are."""
        here, own = inside(tokens - self.first, self.count)
        found = values.gather(-1, own[:, None]).squeeze(-1)
        return self.total(torch.where(here, found, 0.0)) if self.group else found

    @torch.no_grad()
    def likeliest(self, logits: Tensor) -> Tensor:
        """int64 [n], the token with the largest of [n, v]; the first of equal ones."""
        most, token = logits.max(-1)
        token = token + self.first
        if not self.group:
            return token
        mine = torch.stack([most.double(), token.double()])  # which holds any token exactly
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(every, mine, group=self.group)
        values, tokens = torch.stack(every, 1).unbind()
        return tokens.gather(0, values.argmax(0, keepdim=True)).squeeze(0).long()


def inside(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which of them are in [0, count), and each moved to there."""
    return (tokens >= 0) & (tokens < count), tokens.clamp(0, count - 1)
