"""Rank 0's trainer in a group: what it is told to do, it has all others do as well, and then does its part."""

from collections.abc import Mapping
from typing import Any

import torch

from midflight.services.learner.base import REFERENCE, C, Restored, TrainerBase
from midflight.services.learner.checkpoints.checkpoint import Found, step_name
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.metrics import StepReport
from midflight.services.learner.step import RolloutBatch
from midflight.services.learner.trainer import Trainer
from midflight.services.learner.watched import Watched

from .orders import Orders, packed


class Leading(TrainerBase[C]):
    """What every trainer does for the whole group; mixed into one, before it."""

    @property
    def orders(self) -> Orders:
        """To the others."""
        assert self.mesh.orders is not None
        return self.mesh.orders

    def read_examples(self) -> None:
        """All read the same rows, and take the same ones."""
        self.orders.give("read_examples")
        super().read_examples()

    def turn_knob(self, name: str, value: float) -> int:
        """For all."""
        step = super().turn_knob(name, value)  # first: what cannot be used here is used nowhere
        self.orders.give("turn_knob", [name, value])
        return step

    def reconfigure(self, config: C) -> int:
        """For all."""
        step = super().reconfigure(config)
        self.orders.give("reconfigure", config.model_dump(mode="json"))
        return step

    def weights(self) -> dict[str, torch.Tensor]:
        """Put together from all ranks."""
        self.orders.give("weights")
        return super().weights()

    def save(self, extra: Mapping[str, Any]) -> None:
        """Every rank copies and writes its part."""
        self.orders.give("save")
        super().save(extra)

    def go_on_from(self, found: Found) -> Restored:
        """All load the checkpoint that this rank has verified; hosts that do not see it get it first."""
        self.orders.give("restore", found.path.name if found.path else "")
        if found.path and self.mesh.ferry:
            wanted = (found.path.name, f"{REFERENCE}/{step_name(0)}")
            self.mesh.ferry.serve(self.root, [name for name in wanted if (self.root / name).is_dir()])
        return super().go_on_from(found)

    def leave(self) -> None:
        """No more steps."""
        self.orders.give("leave")


class Lead(Leading[LearnerConfig], Trainer):
    """A `Trainer` whose every step is the whole group's."""

    def sft_step(self) -> StepReport:
        """One supervised step."""
        self.orders.give("sft_step")
        report = super().sft_step()
        self.orders.done()
        return report

    def rl_step(self, batch: RolloutBatch, watched: Watched | None = None) -> StepReport:
        """One RL batch, which every rank gets whole."""
        self.orders.give("rl_step", packed(batch))
        report = super().rl_step(batch, watched)
        self.orders.done()
        return report
