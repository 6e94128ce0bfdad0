"""V of the text before each action token: a linear head on the policy's hidden state, or on a body of its own.

The head starts at zero, so that the first advantages are the returns themselves. It reads the hidden state at the
position that predicts the token, which is the last that knows nothing of it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from midflight.services.learner.group.columns import everyones
from midflight.services.learner.group.peers import ALONE, Place
from midflight.services.learner.group.zigzag import cut
from midflight.services.learner.optimizers.optim import PolicyOptimizer
from midflight.services.learner.packs.packing import ActionTokens, PackedBatch

from .policy import Policy


class Critic(nn.Module):
    """`body` None: a head on the hidden states given to it, detached from them if `detach`. sp: that of the policy."""

    def __init__(self, hidden_size: int, body: Policy | None = None, detach: bool = False, sp: Place = ALONE) -> None:
        super().__init__()
        self.body, self.detach, self.sp = body, detach, sp
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def beside(cls, lm: Any, body: Policy | None, detach: bool, sp: Place = ALONE) -> "Critic":
        """A critic for a model, on its device and in float32 (float64 for a float64 model)."""
        weight = lm.get_output_embeddings().weight
        made = cls(weight.shape[1], body, detach, sp)
        made.head.to(device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))
        return made

    def forward(self, hidden: Tensor, pack: PackedBatch, actions: ActionTokens) -> Tensor:
        """Values [A]. hidden: what the policy returned at the action tokens; not read by a critic with a body."""
        if self.body is not None:
            hidden = self.body.hidden(pack, actions)
        elif self.detach:
            hidden = hidden.detach()
        values: Tensor = self.head(hidden.to(self.head.weight.dtype)).squeeze(-1)
        return everyones([values], cut(pack.cu_seqlens, actions.positions, self.sp))[0]


@dataclass(frozen=True, slots=True)
class CriticTraining:
    """A critic and the optimizer of its own parameters."""

    module: Critic
    optimizer: PolicyOptimizer
