"""A model trained on rows of data, how far it is, and what it leaves behind. Knows nothing of messages."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from midflight.services.data import BadRow, DataError
from midflight.services.data.identity import Identity
from midflight.services.learner.base import Obeys, TrainerBase
from midflight.services.learner.checkpoints.shelf import ROWS
from midflight.services.learner.checkpoints.snapshot import put
from midflight.services.learner.group.mesh import Mesh
from midflight.services.learner.metrics import StepReport
from midflight.services.learner.network.lora import Unadapted
from midflight.services.learner.network.policy import Likelihood, Policy
from midflight.services.learner.objectives.objective import evaluate, update
from midflight.services.learner.optimizers.optim import PolicyOptimizer
from midflight.services.learner.packs.documents import Reach, Reader
from midflight.services.learner.packs.examples import Examples, still_the_same
from midflight.services.learner.packs.packing import Document
from midflight.services.learner.packs.partition import quadratic_length
from midflight.services.model.build import save_model

from .config import OfflineConfig
from .objectives import Item, plan

UNKNOWN: Final = 1 << 62
"""Steps of `epochs` of rows that have not been read yet."""


class OfflineTrainer(TrainerBase[OfflineConfig]):
    """One step is one call of `train_step` after `read_examples`.

    Raises UserMistake or ValueError when model, teacher and configuration do not go together.
    """

    module: nn.Module
    """What is trained, the policy or what it is a part of."""

    def __init__(
        self, config: OfflineConfig, model: Mapping[str, Any], seed: int, root: Path, mesh: Mesh | None = None
    ) -> None:
        self._plan, self.stage = plan(config), config.kind
        super().__init__(config, model, seed, root, mesh)
        self.objective = self._plan.makes(self.module, self)
        self.reach = Reach.of(self.policy.lm)
        """Of the rows that are trained on."""
        self.examples: Examples[Any, Item] | None = None
        self.held_out: list[Document] = []
        self.bad: list[str] = []
        """Held-out rows that cannot be used, and why."""
        self.evaluated = -1
        """Steps done at the newest evaluation."""
        self._drawn = self._refused = 0
        self._data: Identity | None = None
        self.optimizer: PolicyOptimizer = self._optimizer(config.optim, self.total, self.module)

    def read_examples(self) -> None:
        """Open the data and read what is held out. Raises DataError when they cannot be used."""
        config, tokenize = self.config, self._reads(self.reach)
        self.examples = Examples(config.data, self._plan.rows, self.seed, tokenize, self._drawn, self._refused)
        self._data = still_the_same("data", self.examples, self._data, config.changed, config.kind)
        super().reconfigure(config)  # how many steps an epoch has is known now
        if config.evaluation:
            self._read_held_out(config.evaluation.data, config.evaluation.rows)

    def _reads(self, reach: Reach) -> Callable[[Any], Item]:
        config = self.config
        return self._plan.items(Reader(self.tokenizer, config.apply_chat_template, config.longest, reach))

    def _read_held_out(self, source: str, most: int) -> None:
        rows, tokenize = self._plan.rows(source), self._reads(Reach.of(self.policy.lm))
        self.held_out, self.bad = [], []
        for number in range(min(len(rows), most)):
            row = rows[number]
            try:
                if isinstance(row, BadRow):
                    raise ValueError(row.reason)
                self.held_out += tokenize(row)
            except ValueError as error:
                self.bad.append(f"{row.origin}: {error}")
        if not self.held_out:
            why = f"; the first: {self.bad[0]}" if self.bad else ""
            raise DataError(f"{source}: none of its first {min(len(rows), most)} rows can be used{why}")

    def train_step(self) -> StepReport:
        """One optimizer update on the next rows; `step` counts it."""
        assert self.examples is not None
        items = self.examples.next(self.config.batch_size)
        self._drawn, self._refused = self.examples.drawn, self.examples.refused
        documents = [document for item in items for document in item]
        how = (self.config.longest, self.mesh.peers, quadratic_length(self.policy.lm))
        with self.profile.training(self.step + 1):
            report = update(self.objective, self.module, self.optimizer, documents, *how)
        self.step += 1
        return report

    def evaluate(self) -> dict[str, float]:
        """What is reported of the held-out data, as it is now."""
        cap, peers = self.config.longest, self.mesh.peers
        with self.profile.phase("evaluate"):
            found = evaluate(self.objective, self.module, self.held_out, cap, peers)
        self.evaluated = self.step
        return found

    @property
    def total(self) -> int:
        """Steps until the end."""
        return self._steps(self.config)

    @property
    def epoch(self) -> float:
        """How often every row has been drawn."""
        return self._drawn / len(self.examples.rows) if self.examples else 0.0

    @property
    def held_out_rows(self) -> int:
        """How many are evaluated."""
        return len(self.held_out) // self.objective.together

    def begun(self) -> Likelihood:
        """Of `Frozen`: with adapters the same model without them, else a copy of the policy as it is now."""
        return Unadapted(self.policy) if self.config.lora else self._frozen(self._twin())

    def leave_model(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """Write the policy with these weights as a Hugging Face folder. Raises OSError, SafetensorError."""
        _, lm = self._plan.opens(self._model, self.seed)
        put(weights, lm)
        save_model(lm, self.tokenizer, folder)

    def obeys(self) -> Obeys:
        """Also the steps."""
        return super().obeys() | {
            "train_step": lambda _: self.train_step(),
            "evaluate": lambda _: self.evaluate(),
        }

    def _opened(self) -> tuple[Any, Any]:
        return self._plan.opens(self._model, self.seed)

    def _trained(self, lm: Any) -> Policy:
        policy = self._policy(lm, self._plan.wraps)
        self.module = self._plan.roots(policy)
        self._cut(self.module, policy)
        return policy

    def _steps(self, config: OfflineConfig) -> int:
        if config.steps:
            return config.steps
        return -(-len(self.examples.rows) * config.epochs // config.batch_size) if self.examples else UNKNOWN

    def _state(self) -> dict[str, Any]:
        now = {"drawn": self._drawn, "refused": self._refused, "data": self._data, "evaluated": self.evaluated}
        return {"stage": ROWS, "kind": self.config.kind, **now}

    def _set_state(self, values: Mapping[str, Any]) -> None:
        self._drawn, self._data = int(values["drawn"]), values["data"]
        self._refused = int(values.get("refused", 0))
        self.evaluated = int(values.get("evaluated", values["step"]))
