"""Token sequences as steps: time advances on action tokens only.

Prompt, tool and padding tokens are left out before anything is computed: they carry no discount, no value, no
statistics, and may hold NaN. What an estimator says about an action is put back at its token; elsewhere stands 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .steps import Steps


@dataclass(frozen=True, slots=True)
class Actions:
    """The A action tokens of a layout of S sequences, sequence after sequence.

    where: their places in the flattened layout, int64 [A]. sequence: whose they are, int64 [A], ascending.
    last: bool [A], the last of their sequence. turn: int64 [A], number of the run of adjoining actions, counted over
    all sequences. begins: int64 [S], where each sequence begins in the flattened layout. shape: that of the layout.
    """

    where: Tensor
    sequence: Tensor
    last: Tensor
    turn: Tensor
    begins: Tensor
    shape: tuple[int, ...]

    @classmethod
    def padded(cls, mask: Tensor) -> "Actions":
        """Of a padded layout: mask bool [B, T], true on action tokens."""
        rows, length = mask.shape
        where = mask.reshape(-1).nonzero().squeeze(1)
        return cls._of(where, torch.arange(rows, device=mask.device) * length, tuple(mask.shape))

    @classmethod
    def packed(cls, mask: Tensor, cu_seqlens: Tensor) -> "Actions":
        """Of a packed layout: mask bool [N]; cu_seqlens int [S + 1], where each sequence begins, and N."""
        if int(cu_seqlens[-1]) != mask.numel():
            raise ValueError(f"cu_seqlens ends at {int(cu_seqlens[-1])}, the layout has {mask.numel()} tokens")
        where = mask.nonzero().squeeze(1)
        return cls._of(where, cu_seqlens[:-1].long(), tuple(mask.shape))

    @classmethod
    def scored(cls, mask: Tensor, positions: Tensor, sequence: Tensor) -> "Actions":
        """Of a layout that holds action tokens only, [N]: those of `mask`.

        positions int64 [N]: their places among all tokens, by which adjoining ones are known. sequence int64 [N]:
        whose they are; equal ones stand together.
        """
        runs = torch.unique_consecutive(sequence, return_inverse=True)[1]
        where = mask.nonzero().squeeze(1)
        begins = torch.searchsorted(runs, torch.arange(int(runs[-1]) + 1 if len(runs) else 0, device=runs.device))
        return cls._of(where, begins, tuple(mask.shape), positions.index_select(0, where))

    @classmethod
    def _of(cls, where: Tensor, begins: Tensor, shape: tuple[int, ...], places: Tensor | None = None) -> "Actions":
        sequence = _owner(begins, where)
        ends = torch.ones(len(where), dtype=torch.bool, device=where.device)
        ends[:-1] = sequence[1:] != sequence[:-1]
        new = torch.zeros_like(where)
        at = where if places is None else places
        new[1:] = (at[1:] != at[:-1] + 1) | (sequence[1:] != sequence[:-1])
        return cls(where, sequence, ends, new.cumsum(0), begins, shape)

    def take(self, x: Tensor) -> Tensor:
        """The entries of x (in the layout's shape) at action tokens, [A]."""
        return x.reshape(-1).index_select(0, self.where)

    def put(self, x: Tensor) -> Tensor:
        """x [A] at its tokens in the layout's shape, 0 elsewhere."""
        flat = x.new_zeros(torch.Size(self.shape).numel())
        return flat.index_copy_(0, self.where, x).view(self.shape)

    def rewards(self, rewards: Tensor) -> Tensor:
        """Rewards in the layout's shape to [A]: each goes to its sequence's last action at or before it.

        Only so does a reward on the end token, or behind a tool's answer, reach the action that earned it. What lies
        before the first action of a sequence no action could change: it is left out, as is what is not finite outside
        of actions.
        """
        flat = rewards.reshape(-1)
        worth = flat.isfinite() & (flat != 0)
        worth[self.where] = True
        at = worth.nonzero().squeeze(1)
        if not len(self.where):
            return flat.new_zeros(0)
        action = torch.searchsorted(self.where, at, right=True) - 1
        known = (action >= 0) & (self.sequence[action.clamp(min=0)] == _owner(self.begins, at))
        return flat.new_zeros(len(self.where)).index_add_(0, action[known], flat[at[known]])

    def steps(
        self,
        rewards: Tensor,
        values: Tensor,
        bootstrap: Tensor | None = None,
        log_ratio: Tensor | None = None,
    ) -> Steps:
        """Steps [A] of rewards and values in the layout's shape.

        bootstrap [S]: V behind the last token of a sequence that was cut off by a limit, 0 for one that ended
        (all, when omitted). log_ratio: log pi - log mu of the tokens; on-policy when omitted.
        """
        own = self.take(values)
        after = torch.zeros_like(own)
        after[:-1] = own[1:]
        ends = own.new_zeros(len(self.begins)) if bootstrap is None else bootstrap.to(own)
        after = torch.where(self.last, ends[self.sequence], after)
        ratio = None if log_ratio is None else self.take(log_ratio)
        return Steps.of(self.rewards(rewards).to(own), own, after, torch.zeros_like(self.last), self.last, ratio)


def _owner(begins: Tensor, where: Tensor) -> Tensor:
    """Which sequence each place belongs to; of empty ones that begin at the same place, the last."""
    return torch.searchsorted(begins.contiguous(), where, right=True) - 1
