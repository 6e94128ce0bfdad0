"""What every trainer stands on: a model on its mesh, its optimizer, live values, and checkpoints of all that.

Knows nothing of messages. The state between two steps is exactly what `save` writes, so a restored trainer goes on bit
for bit (on a CPU, with the same data).
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import torch
from torch import nn

from midflight.kernel.mistake import UserMistake
from midflight.services.model.open import open_model, pick_device
from midflight.services.model.stack import decoder_layers

from .checkpoints.checkpoint import NOTHING, Found, named, steps, sweep, to_go_on_from
from .checkpoints.saver import Saver
from .checkpoints.saving import Share
from .checkpoints.snapshot import load_learner, model_tensors, put, snapshot
from .finite import REMEDY, broken
from .group.mesh import Mesh
from .group.sharding import wholes
from .network.compiled import compile_layers
from .network.critic import CriticTraining
from .network.liger import apply_liger
from .network.lora import adapt, merged, must_match
from .network.policy import Policy, recompute_activations
from .optimizers.optim import PolicyOptimizer
from .optimizers.optim_choice import optim_settings
from .profiling import Profile
from .training_config import OptimConfig, TrainingConfig

REFERENCE: Final = "reference"
"""Folder of the frozen policy below that of the checkpoints."""
BF16: Final = {"auto": None, "on": True, "off": False}
KNOBS: Final = {
    "kl.coef": "kl_coef",
    "clip.range": "clip_low",
    "entropy.coef": "entropy_coef",
    "optim.lr": "lr",
    "optim.weight_decay": "weight_decay",
    "optim.max_grad_norm": "max_grad_norm",
}
"""Knob -> the field it sets."""
C = TypeVar("C", bound=TrainingConfig)
Obeys = dict[str, Callable[[Any], object]]


@dataclass(frozen=True, slots=True)
class Restored:
    """Which checkpoint was loaded, its digest, and why newer ones were passed over. Without any: `scratch`, empty."""

    name: str
    digest: str
    skipped: tuple[str, ...]


class TrainerBase(Generic[C]):
    """A policy, and what there is besides it in a subclass.

    model: the topology's section. root: of the checkpoints. Raises UserMistake when the model cannot be had.
    """

    optimizer: PolicyOptimizer
    stage: str
    """What it does now, for people."""

    def __init__(self, config: C, model: Mapping[str, Any], seed: int, root: Path, mesh: Mesh | None = None) -> None:
        self.config, self.seed, self.root = config, seed, root
        self.mesh = mesh or Mesh(pick_device(config.device))
        torch.manual_seed(seed)
        self._model = model
        self.saver = Saver(self.mesh.reports)
        profile = (config.profile_interval, config.memory_snapshot)
        self.profile = Profile(root.parent / "profile", self.saver.place[0], self.mesh.device, *profile)
        self.tokenizer, lm = self._open()
        self.policy = self._trained(lm)
        self.critic: CriticTraining | None = None
        self.step = 0
        """Batches trained."""
        self.live: dict[str, float] = {}
        """Values set while running, by field or knob."""

    def obeys(self) -> Obeys:
        """Order -> what a rank that does not speak does for it; see `orders`."""
        return {
            "restore": lambda name: self.go_on_from(self._ordered(name) if name else NOTHING),
            "read_examples": lambda _: self.read_examples(),
            "turn_knob": lambda body: self.turn_knob(*body),
            "reconfigure": lambda body: self.reconfigure(type(self.config).model_validate(body)),
            "weights": lambda _: self.weights(),
            "save": lambda _: self.save({}),
        }

    def read_examples(self) -> None:
        """Open the data, if there is any to be read here. May take long."""

    def turn_knob(self, name: str, value: float) -> int:
        """Use a new value from the next step on; -> that step's number."""
        self.live[KNOBS.get(name, name)] = value
        self._apply_live()
        return self.step + 1

    def reconfigure(self, config: C) -> int:
        """Go on with other values of the live fields from the next step on; -> that step's number.

        Raises ValueError, changing nothing, for values that do not go together.
        """
        total = self._steps(config)
        stretched = [replace(one.settings, total_steps=total) for one in self._optimizers()]
        for optimizer, its in zip(self._optimizers(), stretched, strict=True):
            optimizer.settings = its
        self.config = config
        self._apply_live()
        return self.step + 1

    @property
    def mark(self) -> tuple[int, ...]:
        """How far it is: all that it counts."""
        return (self.step,)

    def teacher(self, folder: str) -> Policy:
        """A frozen policy of a folder, cut over the same ranks.

        Raises UserMistake when it cannot be had, ValueError when it has other tokens or cannot be cut so.
        """
        if not Path(folder).is_dir():
            raise ValueError(f"teacher: there is no folder {folder}")
        tokenizer, lm = open_model({"path": folder, "dtype": self._model.get("dtype")}, self.seed)
        if tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise ValueError(f"{folder}: its tokenizer is not that of the model which is trained")
        try:
            return self._frozen(lm)
        except ValueError as error:
            raise ValueError(f"the teacher {folder}: {error}") from error

    def weights(self) -> dict[str, torch.Tensor]:
        """The policy's parameters as the base has them, by their Hugging Face names, adapters merged; copied only where
        merged or cut. Raises UserMistake when one is not finite."""
        self._must_be_finite()
        with self.profile.phase("weights"):
            return merged(wholes(self.policy.lm.state_dict(keep_vars=True)), self.config.lora)

    def save(self, extra: Mapping[str, Any]) -> None:
        """Copy everything that the next step depends on, and have `saver` write it as a checkpoint.

        Raises UserMistake when a weight is not finite: nobody could go on from there.
        """
        self._must_be_finite()
        lora = self.config.lora and self.config.lora.model_dump()
        values = {"step": self.step, "live": self.live, "lora": lora, **self._state(), **extra}
        with self.profile.phase("save"):
            share = self._share(self.policy.lm, self.critic)
        self.saver.start(self.root, self._number(), share, values, self.config.keep_checkpoints)

    def broken(self) -> str:
        """A tensor of the model, or of its critic, that is not finite in this rank's part; empty when there is none."""
        modules = [self.policy, *([self.critic.module] if self.critic else [])]
        return next(filter(None, (broken(model_tensors(module)) for module in modules)), "")

    def _must_be_finite(self) -> None:
        """All ranks must ask."""
        name = self.broken()
        if self.mesh.anywhere(bool(name)):
            what = f"{name or 'a part on another rank'} has NaN or infinity after step {self._number()}"
            raise UserMistake(f"the weights are not finite: {what}; they are neither saved nor given on: {REMEDY}")

    def newest(self) -> Found:
        """The checkpoint to go on from; what a crash left beside it is removed.

        Raises UnusableCheckpoint when there are some, and all are damaged.
        """
        for root in (self.root, self.root / REFERENCE):
            sweep(root)
        self.saver.there = {path.name for path in steps(self.root)}
        return to_go_on_from(self.root)

    def restore(self) -> Restored:
        """Load the newest verified checkpoint, if there is one.

        Raises UnusableCheckpoint when it belongs to another model, or all are damaged.
        """
        return self.go_on_from(self.newest())

    def go_on_from(self, found: Found) -> Restored:
        """Load what is `found`; see `restore`."""
        if found.path is None or found.manifest is None:
            return Restored("scratch", "", found.skipped)
        values = found.manifest.extra
        must_match(values.get("lora"), self.config.lora)
        self.step = int(values["step"])
        self.live = {name: float(value) for name, value in values["live"].items()}
        self._set_state(values)
        load_learner(found.path, self.policy.lm, self.optimizer, self.critic, found.manifest, *self.saver.place)
        self._loaded()
        self._apply_live()
        return Restored(found.path.name, found.manifest.digest, found.skipped)

    def _ordered(self, name: str) -> Found:
        """The checkpoint that the first rank has verified, fetched where the run directory is not seen."""
        if self.mesh.ferry:
            self.mesh.ferry.fetch(self.root)
        return named(self.root / name)

    # what a subclass has besides

    def _open(self) -> tuple[Any, Any]:
        """(tokenizer, model) of the topology, as it is trained; the same every time."""
        tokenizer, lm = self._opened()
        if self.config.lora:
            adapt(lm, self.config.lora, self.seed)
        if self.config.gradient_checkpointing:
            recompute_activations(lm, self.config.recompute_every)
        return tokenizer, lm

    def _opened(self) -> tuple[Any, Any]:
        """The same without adapters, and nothing chosen."""
        return open_model(self._model, self.seed)

    def _number(self) -> int:
        """Of the next checkpoint."""
        return self.step

    def _state(self) -> dict[str, Any]:
        """What else a checkpoint says, JSON."""
        return {}

    def _set_state(self, values: Mapping[str, Any]) -> None:
        """The same, read; also what must be there before tensors are put into it."""

    def _loaded(self) -> None:
        """The tensors are in place."""

    def _steps(self, config: C) -> int:
        """Where a schedule ends."""
        raise AssertionError("a trainer says how many steps it has")

    def _optimizers(self) -> list[PolicyOptimizer]:
        return [self.optimizer, *([self.critic.optimizer] if self.critic else [])]

    def _apply_live(self) -> None:
        """Use what was set while running."""
        for field, value in self.live.items():
            if field == "max_grad_norm":
                for optimizer in self._optimizers():
                    optimizer.settings = replace(optimizer.settings, max_grad_norm=value)
            elif field in ("lr", "weight_decay"):
                setattr(self.optimizer, field, value)

    # models and optimizers

    def _trained(self, lm: Any) -> Policy:
        """The policy that is trained."""
        return self._placed(lm, trained=True)

    def _policy(self, lm: Any, kind: type[Policy] = Policy) -> Policy:
        """A policy on this rank's device."""
        config, mesh = self.config, self.mesh
        made = kind(lm.to(mesh.device), bf16=BF16[config.bf16], sp=mesh.sp, offload=config.activation_offload)
        if config.compile:
            compile_layers(lm, decoder_layers(lm))
        if config.kernels == "liger":
            apply_liger(lm, mesh.device)
        return made

    def _cut(self, module: nn.Module, policy: Policy | None, trained: bool = True) -> None:
        """Cut a module, which is, or has in it, the policy, or none, over the group if there is one."""
        lm, bf16 = (policy.lm, policy.bf16) if policy else (None, False)
        self.mesh.cut(module, lm, bf16=bf16, host=trained and self.config.optimizer_offload)

    def _placed(self, lm: Any, trained: bool = False) -> Policy:
        """A policy on this rank's device, cut."""
        policy = self._policy(lm)
        self._cut(policy, policy, trained)
        return policy

    def _frozen(self, lm: Any) -> Policy:
        """A policy that is not trained, cut as the others."""
        policy = self._placed(lm)
        policy.requires_grad_(False)
        return policy

    def _share(self, lm: nn.Module, critic: CriticTraining | None = None) -> Share:
        return snapshot(lm, self.optimizer, critic, *self.saver.place)

    def _twin(self) -> Any:
        """A model of its own with the policy's weights, whole on this rank's device."""
        if not self.mesh.devices:
            return copy.deepcopy(self.policy.lm)
        _, lm = self._open()
        put(wholes(model_tensors(self.policy.lm)), lm)
        return lm.to(self.mesh.device)

    def _optimizer(self, config: OptimConfig, steps: int, module: nn.Module | None = None) -> PolicyOptimizer:
        """What is cut over a group has its optimizer where its parts are."""
        host = self.config.optimizer_offload and not self.mesh.devices
        return PolicyOptimizer(module or self.policy, optim_settings(config, steps), host)
