"""A reward model: the body of a language model with one number in place of its head."""

from typing import Any

from torch import Tensor

from midflight.services.algorithms.reward import pair_loss, ranked
from midflight.services.learner.group.columns import everyones
from midflight.services.learner.objectives.objective import Objective, Sums
from midflight.services.learner.packs.packing import ActionTokens, PackedBatch

from .policy import Policy


class Scorer(Policy):
    """A transformers sequence classifier with one label behind packed attention; its score is float32 or wider."""

    def forward(self, batch: PackedBatch, actions: ActionTokens) -> Tensor:  # type: ignore[override]
        """Scores [A] of a pack's marked positions, on every rank that shares its sequences."""
        hidden = self.hidden(batch, actions)
        head: Any = self.lm.score
        scores: Tensor = head(hidden.to(head.weight.dtype)).squeeze(-1)
        wide = scores.double() if scores.dtype.itemsize > 4 else scores.float()
        return everyones([wide], self.part(batch, actions))[0]


class Preference(Objective):
    """-log sigmoid of the difference of scores. Metrics a pair: loss, pair_loss (the same), accuracy (the chosen one
    has the higher score; a tie counts half), margin (the difference), reward_chosen, reward_rejected.
    """

    together = 2

    def __init__(self, scorer: Scorer, margin: float) -> None:
        self.scorer, self.margin = scorer, margin

    def size(self, batch: PackedBatch) -> int:
        """Pairs."""
        return batch.documents // 2

    def loss(self, batch: PackedBatch) -> tuple[Tensor, Sums]:
        """Summed over pairs."""
        scores = self.scorer(batch, batch.actions())
        chosen, rejected = scores[0::2], scores[1::2]
        losses, n = pair_loss(chosen, rejected, self.margin), len(chosen)
        return losses.sum(), {
            "pair_loss": (losses.detach().sum(), n),
            "accuracy": (ranked(chosen, rejected).detach().sum(), n),
            "margin": ((chosen - rejected).detach().sum(), n),
            "reward_chosen": (chosen.detach().sum(), n),
            "reward_rejected": (rejected.detach().sum(), n),
        }
