"""The learner's trainer: policy, reference, critic, optimizer, settings, counters, and their checkpoint.

One step is one call of `sft_step` or `rl_step`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from midflight.messages.knobs import REWARD_KNOB
from midflight.services.algorithms.baselines import moved
from midflight.services.data import SftRow, demonstrations
from midflight.services.data.identity import Identity

from .base import REFERENCE, Obeys, TrainerBase
from .checkpoints.checkpoint import UnusableCheckpoint, latest_verified, named, step_name
from .checkpoints.saving import save
from .checkpoints.snapshot import load_model_tensors
from .config import LearnerConfig
from .group.mesh import Mesh
from .group.orders import unpacked
from .metrics import StepReport
from .network.critic import Critic, CriticTraining
from .network.lora import Unadapted
from .network.policy import Policy
from .objectives.sft import sft_update
from .optimizers.optim_choice import critics, optim_settings
from .packs.documents import Reader
from .packs.examples import Examples, still_the_same
from .packs.packing import Document
from .rl import rl_settings
from .step import RolloutBatch, rl_update
from .watched import Watched


class Trainer(TrainerBase[LearnerConfig]):
    """A policy in one of two stages: `sft` (if configured) and then `rl`."""

    def __init__(
        self, config: LearnerConfig, model: Mapping[str, Any], seed: int, root: Path, mesh: Mesh | None = None
    ) -> None:
        super().__init__(config, model, seed, root, mesh)
        self.reference: Policy | Unadapted | None = None
        self.stage = "sft" if config.sft else "rl"
        self.sft_done = self.sft_drawn = self.sft_refused = 0
        """Supervised steps, rows drawn for them, and those of them that cannot be used."""
        self.settings = rl_settings(config, seed)
        optim_settings(config.optim, config.steps)  # what is wrong with it is found out before a warm start
        self.optimizer = self._optimizer(config.sft.optim if config.sft else config.optim, self._steps(config))
        self.recent: dict[int, int] = {}
        """Sample -> step of what was trained since the last commit the ledger has confirmed."""
        self.objective_weights = dict(config.objective_weights)
        self.baseline: float | None = None
        """Mean reward of the batches so far, for estimator ema."""
        self._sft_data: Identity | None = None
        self.examples: Examples[SftRow, Document] | None = None
        """The warm start's, while it lasts."""
        if self.stage == "rl" or config.kl.reference:  # a teacher that is not one is found out before a warm start
            self._freeze_reference()
        if self.stage == "rl":
            self._make_critic()

    def read_examples(self) -> None:
        """Open the warm start's data, if it is still to be done. May take long."""
        if self.config.sft and self.stage == "sft":
            sft = self.config.sft
            template, cap = self.config.apply_chat_template is not False, self.config.longest
            tokenize = Reader(self.tokenizer, template, cap).demonstration
            at = (self.sft_drawn, self.sft_refused)
            self.examples = Examples(sft.data, demonstrations, self.seed, tokenize, *at)
            self._sft_data = still_the_same("sft.data", self.examples, self._sft_data, sft.changed, "learner.sft")

    def sft_step(self) -> StepReport:
        """One supervised step after `read_examples`; the last one opens the RL stage."""
        sft = self.config.sft
        assert sft is not None and self.examples is not None  # noqa: PT018
        documents = self.examples.next(sft.batch_size)
        self.sft_drawn, self.sft_refused = self.examples.drawn, self.examples.refused
        cap, peers = self.config.longest, self.mesh.peers
        with self.profile.training(self.sft_done + 1):
            report = sft_update(self.policy, self.optimizer, documents, cap, peers)
        self.sft_done += 1
        if self.sft_done >= sft.steps:
            self._open_rl()
        return report

    def rl_step(self, batch: RolloutBatch, watched: Watched | None = None) -> StepReport:
        """One RL batch; `step` counts it. `watched` is told of its tokens."""
        if self.settings.estimator == "ema":
            batch = replace(batch, baseline=self.baseline)
            self.baseline = moved(self.baseline, batch.rewards, self.settings.ema_decay)
        these = (self.policy, self.reference, self.optimizer)
        with self.profile.training(self.step + 1):
            report = rl_update(*these, batch, self.settings, self.critic, watched, self.mesh.peers)
        self.step += 1
        return report

    def reconfigure(self, config: LearnerConfig) -> int:
        """Go on with other values of the live fields from the next step on; -> that step's number.

        Raises ValueError, changing nothing, for values that do not go together.
        """
        settings, before = rl_settings(config, self.seed), self.settings
        optim_settings(config.optim, config.steps)
        self.settings = settings
        try:
            return super().reconfigure(config)
        except ValueError:
            self.settings = before
            raise

    @property
    def mark(self) -> tuple[int, int]:
        """(supervised steps, RL batches) done: how far it is."""
        return self.sft_done, self.step

    def obeys(self) -> Obeys:
        """Also the steps."""
        return super().obeys() | {
            "sft_step": lambda _: self.sft_step(),
            "rl_step": lambda body: self.rl_step(unpacked(body)),
        }

    def _number(self) -> int:
        return self.sft_done + self.step

    def _state(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "sft_done": self.sft_done,
            "sft_drawn": self.sft_drawn,
            "sft_refused": self.sft_refused,
            "sft_data": self._sft_data,
            "baseline": self.baseline,
            "recent": [[sample, step] for sample, step in self.recent.items()],
        }

    def _set_state(self, values: Mapping[str, Any]) -> None:
        began, self.stage, self.sft_done = self.stage, str(values["stage"]), int(values["sft_done"])
        if self.stage == "sft" and not self.config.sft:
            raise UnusableCheckpoint("it is in the middle of a warm start: put `sft` back, or start a new run")
        batch = self.config.sft.batch_size if self.config.sft else 0
        self.sft_drawn = int(values.get("sft_drawn", self.sft_done * batch))
        self.sft_refused = int(values.get("sft_refused", 0))
        self._sft_data = values.get("sft_data")
        self.baseline = values.get("baseline")
        self.recent = {int(sample): int(step) for sample, step in values["recent"]}
        if self.stage != began:
            self.optimizer = self._optimizer(self.config.optim, self.config.steps)
            self._make_critic()

    def _loaded(self) -> None:
        if self.stage == "rl" and self.sft_done:
            self._load_reference()

    def _apply_live(self) -> None:
        """Values outlive a change of stage; those of the optimizer are for the RL stage."""
        if self.stage == "rl":
            super()._apply_live()
        for field, value in self.live.items():
            if field == "clip_low":
                self.settings = replace(self.settings, clip_low=value, clip_high=self.config.clip_high or value)
            elif field == "entropy_coef":
                self.settings = replace(self.settings, entropy_coef=value)
            elif field.startswith(REWARD_KNOB):
                self.objective_weights[field.removeprefix(REWARD_KNOB)] = value
            elif field == "kl_coef" and self.settings.kl_type is not None:
                self.settings = replace(self.settings, kl_coef=value)

    def _steps(self, config: LearnerConfig) -> int:
        return config.sft.steps if config.sft and self.stage == "sft" else config.steps

    def _open_rl(self) -> None:
        self.stage = "rl"
        self.examples = None
        self.optimizer = self._optimizer(self.config.optim, self.config.steps)
        self._freeze_reference()
        self._make_critic()
        self._apply_live()
        if own := self._own_reference:
            self.saver.settle()
            save(self.root / REFERENCE, 0, self._share(own.lm), {}, reports=self.mesh.reports)

    def _freeze_reference(self) -> None:
        if self.config.kl.type is None:
            return
        folder = self.config.kl.reference
        if folder and self.reference:
            return
        if self.config.lora and not self.config.sft and not self.sft_done and not folder:
            self.reference = Unadapted(self.policy)
            return
        self.reference = self.teacher(folder) if folder else self._frozen(self._twin())

    @property
    def _own_reference(self) -> Policy | None:
        """A reference that nothing but this run's checkpoints hold."""
        return self.reference if isinstance(self.reference, Policy) and not self.config.kl.reference else None

    def _make_critic(self) -> None:
        """A fresh critic for the estimators that read values; a body of its own begins as a copy of the policy's."""
        if not self.settings.uses_critic:
            return
        config, lm = self.config.critic, self.policy.lm
        body = self._policy(self._twin()) if config.kind == "model" else None
        module = Critic.beside(lm, body, config.detach, self.mesh.sp)
        self._cut(module, body)
        optim = critics(self.config.optim, config.lr)
        self.critic = CriticTraining(module, self._optimizer(optim, self.config.steps, module))

    def _load_reference(self) -> None:
        self._freeze_reference()
        if not (own := self._own_reference):
            return
        root = self.root / REFERENCE
        found = latest_verified(root) if self.mesh.leads else named(root / step_name(0))
        if found.path is None:
            raise UnusableCheckpoint(f"{root}: the reference policy is gone: {found.skipped}")
        load_model_tensors(found.path, own.lm, found.manifest)
