"""Rank 0's offline trainer in a group."""

from midflight.services.learner.group.lead import Leading
from midflight.services.learner.metrics import StepReport

from .config import OfflineConfig
from .trainer import OfflineTrainer


class OfflineLead(Leading[OfflineConfig], OfflineTrainer):
    """An `OfflineTrainer` whose every step is the whole group's."""

    def train_step(self) -> StepReport:
        """On rows that every rank reads."""
        self.orders.give("train_step")
        report = super().train_step()
        self.orders.done()
        return report

    def evaluate(self) -> dict[str, float]:
        """Divided among all."""
        self.orders.give("evaluate")
        return super().evaluate()
