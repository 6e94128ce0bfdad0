"""What a trainer has on its device, by its kind: the network that trains, one beside it, and what ends them."""

from collections.abc import Mapping
from typing import Any

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.offline.config import DistillConfig, DpoConfig, RewardModelConfig
from midflight.services.learner.training_config import TrainingConfig
from midflight.services.model.outline import Outline, outline

from .heads import distillation_head, logprob_head
from .layout import Layout
from .network import Network, adapted, judging
from .workload import uses_critic


def trained(trainer: TrainingConfig, model: Outline) -> Network:
    """The network that trains. Raises UserMistake for adapters that it cannot have."""
    network = adapted(model, trainer.lora)
    if not isinstance(trainer, RewardModelConfig):
        return network
    judge = judging(model)
    return Network(judge, network.adapters, (judge.head,) if trainer.lora else ())


def critic_of(trainer: TrainingConfig) -> str:
    """Its kind, or nothing."""
    return trainer.critic.kind if isinstance(trainer, LearnerConfig) and uses_critic(trainer) else ""


def teacher_of(trainer: TrainingConfig, section: Mapping[str, Any]) -> Network | None:
    """A network of its own that is learned from. Raises UserMistake when its folder has no configuration."""
    if isinstance(trainer, LearnerConfig):
        folder, key = trainer.kl.reference, "kl.reference"
    else:
        folder, key = trainer.teacher if isinstance(trainer, DistillConfig) else None, "teacher"
    if folder is None:
        return None
    try:
        return Network(outline({"path": folder, "dtype": section.get("dtype")}))
    except UserMistake as mistake:
        raise UserMistake(f"{trainer.kind}.{key}: {mistake}") from mistake


def compared(trainer: TrainingConfig) -> bool:
    """Whether there is a frozen copy of what trains: not where adapters can be taken out of effect instead."""
    if isinstance(trainer, LearnerConfig):
        return trainer.kl.type is not None and not (trainer.lora and not trainer.sft) and not trainer.kl.reference
    return isinstance(trainer, DpoConfig) and not trainer.lora


def head_of(trainer: TrainingConfig, network: Network, layout: Layout, tokens: int, teacher: Network | None) -> int:
    """Bytes of the output layer and the loss at their backward pass."""
    if isinstance(trainer, RewardModelConfig):
        return 0  # one number a text
    if isinstance(trainer, DistillConfig) and teacher:
        return distillation_head(network, teacher, layout, tokens, trainer.loss)
    entropy = isinstance(trainer, LearnerConfig) and trainer.entropy_coef > 0
    return logprob_head(network, layout, tokens, entropy)
