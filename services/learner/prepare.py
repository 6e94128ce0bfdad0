"""A scored rollout batch made ready: cut into micro-batches, scored under other policies, advantages set."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from midflight.services.algorithms.baselines import Advantages, advantages, fold_kl
from midflight.services.algorithms.kl import kl_estimate

from .packing import ActionTokens, Document, PackedBatch, microbatches
from .policy import Policy
from .settings import RlSettings


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """N scored samples. rewards float [N]; group int64 [N], samples of one prompt share a label.

    version: the policy version being trained; a token's lag is version minus its own.
    """

    documents: Sequence[Document]
    rewards: Tensor
    group: Tensor
    version: int

    def __post_init__(self) -> None:
        n = len(self.documents)
        if not n or self.rewards.shape != (n,) or self.group.shape != (n,):
            raise ValueError(
                f"batch of {n} documents, rewards {tuple(self.rewards.shape)}, group {tuple(self.group.shape)}"
            )


@dataclass(slots=True)
class Micro:
    """One forward's worth of one update.

    mask: bool [A], false where the behaviour log-prob is not finite. proximal, reference: log-probs (nats, [A])
    under pi_old and the reference, None where not computed. advantage: [A], set by `assign_advantages`.
    """

    pack: PackedBatch
    actions: ActionTokens
    mask: Tensor
    proximal: Tensor | None = None
    reference: Tensor | None = None
    advantage: Tensor | None = None


def plan(batch: RolloutBatch, settings: RlSettings, step: int, device: torch.device) -> list[list[Micro]]:
    """Rows into at most `update_per_rollout` updates, in order or shuffled by (seed, step), each into micro-batches.

    Raises SequenceTooLong, naming the sample.
    """
    rows = list(range(len(batch.documents)))
    if settings.shuffle:
        random.Random(f"{settings.seed}/{step}").shuffle(rows)
    cuts = [part.tolist() for part in torch.tensor(rows).tensor_split(settings.update_per_rollout) if len(part)]
    return [[_micro(p.to(device)) for p in _packs(batch, part, settings)] for part in cuts]


def _packs(batch: RolloutBatch, rows: list[int], settings: RlSettings) -> list[PackedBatch]:
    return microbatches(batch.documents, rows, settings.max_length_per_device)


def _micro(pack: PackedBatch) -> Micro:
    actions = pack.actions()
    return Micro(pack, actions, actions.behaviour_logp.isfinite())


@torch.no_grad()
def score(policy: Policy, reference: Policy | None, updates: list[list[Micro]], settings: RlSettings) -> None:
    """Log-probs under the reference everywhere, under pi_old where the weights will have moved.

    During the first update the policy still is pi_old, so its own detached log-probs serve there.
    """
    for index, micros in enumerate(updates):
        for micro in micros:
            if reference is not None:
                micro.reference = reference.score(micro.pack, micro.actions, settings.temperature)[0]
            if settings.loss == "decoupled_ppo" and index:
                micro.proximal = policy.score(micro.pack, micro.actions, settings.temperature)[0]


def assign_advantages(batch: RolloutBatch, updates: list[list[Micro]], settings: RlSettings) -> Advantages:
    """Rewards, less a KL penalty if any, to advantages; then to every scored token of every micro-batch.

    The penalty compares the behaviour policy, which drew the tokens, with the reference.
    """
    rewards = batch.rewards.double()
    micros = [micro for update in updates for micro in update]
    penalties = [_penalty(micro, settings) for micro in micros]
    if settings.kl_type == "reward":
        for micro, penalty in zip(micros, penalties, strict=True):
            rewards = fold_kl(rewards, penalty.cpu(), micro.actions.sequence.cpu(), settings.kl_coef)
    adv = advantages(rewards, batch.group, settings.estimator, settings.norm_var)
    for micro, penalty in zip(micros, penalties, strict=True):
        values = adv.values.to(penalty)[micro.actions.sequence]
        micro.advantage = values - settings.kl_coef * penalty if settings.kl_type == "advantage" else values
    return adv


def _penalty(micro: Micro, settings: RlSettings) -> Tensor:
    behaviour = micro.actions.behaviour_logp
    if micro.reference is None or settings.kl_type not in ("reward", "advantage"):
        return torch.zeros_like(behaviour)
    return kl_estimate(behaviour, micro.reference, settings.kl_reward_estimator, micro.mask)
