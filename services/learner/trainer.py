"""What is trained and how far it is: policy, reference, optimizer, settings, counters, and their checkpoint.

Knows nothing of messages. One step is one call of `sft_step` or `rl_step`; the state between two calls is exactly what
`save` writes, so a restored trainer goes on bit for bit (on a CPU, with the same batches).
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from midflight.messages.knobs import REWARD_KNOB
from midflight.services.algorithms.baselines import moved
from midflight.services.algorithms.masks import BY_LAG, Limits, Row
from midflight.services.data import DataError, SftRow
from midflight.services.data.identity import Identity, difference, identity
from midflight.services.model.chat import supervised
from midflight.services.model.open import open_model, pick_device

from .checkpoint import Found, UnusableCheckpoint, latest_verified, named, step_name, sweep
from .config import LagRow, LearnerConfig, LimitsConfig, OptimConfig
from .critic import Critic, CriticTraining
from .examples import Examples
from .lora import Unadapted, adapt, merged, must_match
from .mesh import Mesh
from .metrics import StepReport
from .optim import PolicyOptimizer
from .optim_choice import critics, optim_settings
from .packing import Document, SequenceTooLong
from .policy import Policy, recompute_activations
from .saver import Saver
from .saving import Share, save
from .settings import CriticSettings, RlSettings
from .sft import sft_update
from .sharding import wholes
from .snapshot import load_learner, load_model_tensors, model_tensors, put, snapshot
from .step import RolloutBatch, rl_update
from .watched import Watched

KNOBS: Final = {
    "kl.coef": "kl_coef",
    "clip.range": "clip_low",
    "entropy.coef": "entropy_coef",
    "optim.lr": "lr",
    "optim.weight_decay": "weight_decay",
    "optim.max_grad_norm": "max_grad_norm",
}
BF16: Final = {"auto": None, "on": True, "off": False}


@dataclass(frozen=True, slots=True)
class Restored:
    """Which checkpoint was loaded, its digest, and why newer ones were passed over. Without any: `scratch`, empty."""

    name: str
    digest: str
    skipped: tuple[str, ...]


class Trainer:
    """A policy in one of two stages: `sft` (if configured) and then `rl`."""

    def __init__(
        self, config: LearnerConfig, model: Mapping[str, Any], seed: int, root: Path, mesh: Mesh | None = None
    ) -> None:
        self.config, self.seed, self.root = config, seed, root
        self.mesh = mesh or Mesh(pick_device(config.device))
        torch.manual_seed(seed)
        self._model = model
        self.saver = Saver(self.mesh.reports)
        self.tokenizer, lm = self._opened()
        self.policy = self._placed(lm)
        self.reference: Policy | Unadapted | None = None
        self.critic: CriticTraining | None = None
        self.stage = "sft" if config.sft else "rl"
        self.step = 0
        """RL batches trained."""
        self.sft_done = self.sft_drawn = 0
        """Supervised steps, and rows drawn for them."""
        self.settings = rl_settings(config, seed)
        self.optimizer = self._optimizer(config.sft.optim if config.sft else config.optim, self._steps())
        self.recent: dict[int, int] = {}
        """Sample -> step of what was trained since the last commit the ledger has confirmed."""
        self.live: dict[str, float] = {}
        """Values set while running, by field or knob; they outlive a change of stage."""
        self.objective_weights = dict(config.objective_weights)
        self.baseline: float | None = None
        """Mean reward of the batches so far, for estimator ema."""
        self._sft_data: Identity | None = None
        self.examples: Examples | None = None
        """The warm start's, while it lasts."""
        if self.stage == "rl":
            self._freeze_reference()
            self._make_critic()

    def read_examples(self) -> None:
        """Open the warm start's data, if it is still to be done. May take long."""
        if self.config.sft and self.stage == "sft":
            sft = self.config.sft
            self.examples = Examples(sft.data, self.seed, self._document, self.sft_drawn)
            now = identity(sft.data, len(self.examples.rows), self._sft_data)
            why = difference(self._sft_data, now) if self._sft_data else ""
            if why and sft.changed == "refuse":
                raise DataError(
                    f"sft.data is not what this run's warm start began with - {why} - put the old data back, start a "
                    "new run, or go on with what is there now by services.learner.sft.changed=accept"
                )
            self._sft_data = now

    def sft_step(self) -> StepReport:
        """One supervised step after `read_examples`; the last one opens the RL stage."""
        sft = self.config.sft
        assert sft is not None and self.examples is not None  # noqa: PT018
        documents = self.examples.next(sft.batch_size)
        self.sft_drawn = self.examples.drawn
        cap, peers = self.config.longest, self.mesh.peers
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
        report = rl_update(
            self.policy,
            self.reference,
            self.optimizer,
            batch,
            self.settings,
            self.critic,
            watched,
            self.mesh.peers,
        )
        self.step += 1
        return report

    def turn_knob(self, name: str, value: float) -> int:
        """Use a new value from the next step on; -> that step's number."""
        self.live[KNOBS.get(name, name)] = value
        self._apply_live()
        return self.step + 1

    def reconfigure(self, config: LearnerConfig) -> int:
        """Go on with other values of the live fields from the next step on; -> that step's number.

        Raises ValueError, changing nothing, for values that do not go together.
        """
        settings = rl_settings(config, self.seed)
        if self.stage == "rl":
            longer = [replace(one.settings, total_steps=config.steps) for one in self._optimizers()]
            for optimizer, its in zip(self._optimizers(), longer, strict=True):
                optimizer.settings = its
        self.config, self.settings = config, settings
        self._apply_live()
        return self.step + 1

    @property
    def mark(self) -> tuple[int, int]:
        """(supervised steps, RL batches) done: how far it is."""
        return self.sft_done, self.step

    def weights(self) -> dict[str, torch.Tensor]:
        """The policy's parameters by their Hugging Face names, adapters merged; copied only where merged or cut."""
        return merged(wholes(self.policy.lm.state_dict(keep_vars=True)), self.config.lora)

    def save(self, extra: Mapping[str, Any]) -> None:
        """Copy everything that the next step depends on, and have `saver` write it as a checkpoint."""
        values = {
            "stage": self.stage,
            "step": self.step,
            "sft_done": self.sft_done,
            "sft_drawn": self.sft_drawn,
            "sft_data": self._sft_data,
            "live": self.live,
            "lora": self.config.lora and self.config.lora.model_dump(),
            "baseline": self.baseline,
            "recent": [[sample, step] for sample, step in self.recent.items()],
            **extra,
        }
        share = self._share(self.policy.lm, self.critic)
        self.saver.start(self.root, self.sft_done + self.step, share, values, self.config.keep_checkpoints)

    def newest(self) -> Found:
        """The checkpoint to go on from; what a crash left beside it is removed."""
        for root in (self.root, self.root / "reference"):
            sweep(root)
        return latest_verified(self.root)

    def restore(self) -> Restored:
        """Load the newest verified checkpoint, if there is one.

        Raises UnusableCheckpoint when it belongs to another model.
        """
        return self.go_on_from(self.newest())

    def go_on_from(self, found: Found) -> Restored:
        """Load what is `found`; see `restore`."""
        if found.path is None or found.manifest is None:
            return Restored("scratch", "", found.skipped)
        values = found.manifest.extra
        must_match(values.get("lora"), self.config.lora)
        self.stage, self.step, self.sft_done = str(values["stage"]), int(values["step"]), int(values["sft_done"])
        batch = self.config.sft.batch_size if self.config.sft else 0
        self.sft_drawn = int(values.get("sft_drawn", self.sft_done * batch))
        self._sft_data = values.get("sft_data")
        self.live = {name: float(value) for name, value in values["live"].items()}
        self.baseline = values.get("baseline")
        self.recent = {int(sample): int(step) for sample, step in values["recent"]}
        if self.stage == "rl":
            self.optimizer = self._optimizer(self.config.optim, self.config.steps)
            self._make_critic()
        load_learner(found.path, self.policy.lm, self.optimizer, self.critic, found.manifest, *self.saver.place)
        if self.stage == "rl" and self.config.sft:
            self._load_reference()
        self._apply_live()
        return Restored(found.path.name, found.manifest.digest, found.skipped)

    def _apply_live(self) -> None:
        for field, value in self.live.items():
            if field in ("lr", "weight_decay"):
                if self.stage == "rl":
                    setattr(self.optimizer, field, value)
            elif field == "max_grad_norm":
                for optimizer in self._optimizers() if self.stage == "rl" else ():
                    optimizer.settings = replace(optimizer.settings, max_grad_norm=value)
            elif field == "clip_low":
                self.settings = replace(self.settings, clip_low=value, clip_high=self.config.clip_high or value)
            elif field == "entropy_coef":
                self.settings = replace(self.settings, entropy_coef=value)
            elif field.startswith(REWARD_KNOB):
                self.objective_weights[field.removeprefix(REWARD_KNOB)] = value
            elif self.settings.kl_type is not None:
                self.settings = replace(self.settings, kl_coef=value)

    def _optimizers(self) -> list[PolicyOptimizer]:
        return [self.optimizer, *([self.critic.optimizer] if self.critic else [])]

    def _steps(self) -> int:
        return self.config.sft.steps if self.config.sft and self.stage == "sft" else self.config.steps

    def _open_rl(self) -> None:
        self.stage = "rl"
        self.examples = None
        self.optimizer = self._optimizer(self.config.optim, self.config.steps)
        self._freeze_reference()
        self._make_critic()
        self._apply_live()
        if isinstance(self.reference, Policy):
            self.saver.settle()
            save(self.root / "reference", 0, self._share(self.reference.lm), {}, reports=self.mesh.reports)

    def _freeze_reference(self) -> None:
        if self.config.kl.type is None:
            return
        if self.config.lora and not self.config.sft:
            self.reference = Unadapted(self.policy)
            return
        self.reference = self._placed(self._twin())
        self.reference.requires_grad_(False)

    def _make_critic(self) -> None:
        """A fresh critic for the estimators that read values; a body of its own begins as a copy of the policy's."""
        if not self.settings.uses_critic:
            return
        config, lm = self.config.critic, self.policy.lm
        body = Policy(self._twin(), bf16=BF16[self.config.bf16], sp=self.mesh.sp) if config.kind == "model" else None
        module = Critic.beside(lm, body, config.detach, self.mesh.sp)
        self.mesh.cut(module, body.lm if body else None)
        optim = critics(self.config.optim, config.lr)
        self.critic = CriticTraining(module, self._optimizer(optim, self.config.steps, module))

    def _load_reference(self) -> None:
        self._freeze_reference()
        if not isinstance(self.reference, Policy):
            return
        root = self.root / "reference"
        found = latest_verified(root) if self.mesh.leads else named(root / step_name(0))
        if found.path is None:
            raise UnusableCheckpoint(f"{root}: the reference policy is gone: {found.skipped}")
        load_model_tensors(found.path, self.reference.lm, found.manifest)

    def _placed(self, lm: Any) -> Policy:
        """A policy on this rank's device, cut over the group if there is one."""
        policy = Policy(lm.to(self.mesh.device), bf16=BF16[self.config.bf16], sp=self.mesh.sp)
        self.mesh.cut(policy, lm)
        return policy

    def _share(self, lm: nn.Module, critic: CriticTraining | None = None) -> Share:
        return snapshot(lm, self.optimizer, critic, *self.saver.place)

    def _opened(self) -> tuple[Any, Any]:
        tokenizer, lm = open_model(self._model, self.seed)
        if self.config.lora:
            adapt(lm, self.config.lora, self.seed)
        if self.config.gradient_checkpointing:
            recompute_activations(lm, self.config.recompute_every)
        return tokenizer, lm

    def _twin(self) -> Any:
        """A model of its own with the policy's weights, whole on this rank's device."""
        if not self.mesh.devices:
            return copy.deepcopy(self.policy.lm)
        _, lm = self._opened()
        put(wholes(model_tensors(self.policy.lm)), lm)
        return lm.to(self.mesh.device)

    def _optimizer(self, config: OptimConfig, steps: int, module: nn.Module | None = None) -> PolicyOptimizer:
        return PolicyOptimizer(module or self.policy, optim_settings(config, steps))

    def _document(self, row: SftRow) -> Document:
        """A conversation in tokens, those of the assistant marked. Raises ValueError when it cannot be used."""
        pair = supervised(self.tokenizer, row.messages, template=self.config.apply_chat_template is not False)
        if len(pair.ids) - 1 > self.config.longest:
            raise SequenceTooLong(row.origin, len(pair.ids) - 1, self.config.longest)
        return Document("sft", pair.ids, [bool(bit) for bit in pair.mask])


def rl_settings(config: LearnerConfig, seed: int) -> RlSettings:
    """The configuration as the update reads it."""
    return RlSettings(
        loss=config.loss,
        masks=tuple(config.masks),
        limits=limits_of(config.limits),
        table=table_of(config.by_lag),
        estimator=config.adv.estimator,
        norm_var=config.adv.norm_var,
        critic=critic_settings(config),
        clip_low=config.clip,
        clip_high=config.clip_high or config.clip,
        tis_cap=config.tis_cap,
        proximal=config.proximal,
        ema_decay=config.adv.ema_decay,
        update_per_rollout=config.update_per_rollout,
        seed=seed,
        aggregation=config.aggregation,
        max_new_tokens=config.max_new_tokens or 32,
        kl_type=config.kl.type,
        kl_coef=config.kl.coef if config.kl.type else 0.0,
        kl_reward_estimator=config.kl.reward_estimator,
        kl_loss_estimator=config.kl.loss_estimator,
        entropy_coef=config.entropy_coef,
        temperature=config.temperature or 1.0,
        max_length_per_device=config.longest,
    )


def critic_settings(config: LearnerConfig) -> CriticSettings:
    """How values enter and are learned."""
    adv, critic = config.adv, config.critic
    return CriticSettings(
        gamma=adv.gamma,
        lamda=adv.lamda,
        rho_bar=adv.rho_bar,
        c_bar=adv.c_bar,
        clip_ratio=adv.clip_ratio,
        n_steps=adv.n_steps,
        bootstrap_method=adv.bootstrap_method,
        trace_level=adv.trace_level,
        dead_band=adv.dead_band,
        center=adv.center,
        whiten=adv.whiten,
        value_clip=critic.clip,
        coef=critic.coef,
        warmup_steps=critic.warmup_steps,
    )


def limits_of(config: LimitsConfig) -> Limits:
    """The bounds of the masks."""
    bands = {name: (getattr(config, name)[0], getattr(config, name)[1]) for name in ("token", "sequence", "geometric")}
    return Limits(**bands, trm_most=config.trm_most, trm_mean=config.trm_mean, opsm=config.opsm, m2po=config.m2po)


def table_of(rows: list[LagRow] | None) -> tuple[Row, ...]:
    """The table of corrections: none, the default one for an empty list, or the rows by their lag."""
    if rows is None:
        return ()
    given = tuple(Row(row.up_to, row.loss, tuple(row.masks)) for row in rows)
    return tuple(sorted(given, key=lambda row: math.inf if row.up_to is None else row.up_to)) or BY_LAG
