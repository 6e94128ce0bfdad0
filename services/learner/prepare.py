"""A scored rollout batch made ready: cut into micro-batches, scored under other policies, advantages set."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from midflight.services.algorithms.baselines import Advantages, Estimator, advantages, fold_kl
from midflight.services.algorithms.kl import kl_estimate
from midflight.services.algorithms.losses import USES_PROXIMAL
from midflight.services.algorithms.masks import keep_by_name
from midflight.services.algorithms.ratios import log_ratio

from .group.peers import ALONE, Peers
from .group.sharding import cut_again
from .network.critic import Critic
from .network.policy import Likelihood, Policy
from .packs.packing import ActionTokens, Document, PackedBatch, microbatches
from .packs.partition import QUADRATIC_LENGTH
from .settings import RlSettings


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """N scored samples. rewards float [N]; group int64 [N], samples of one prompt share a label.

    version: the policy version being trained; a token's lag is version minus its own. baseline: what rewards are
    compared with under estimator ema; their own mean when None.
    """

    documents: Sequence[Document]
    rewards: Tensor
    group: Tensor
    version: int
    baseline: float | None = None

    def __post_init__(self) -> None:
        n = len(self.documents)
        if not n or self.rewards.shape != (n,) or self.group.shape != (n,):
            raise ValueError(
                f"batch of {n} documents, rewards {tuple(self.rewards.shape)}, group {tuple(self.group.shape)}"
            )

    @property
    def lag(self) -> int:
        """Optimizer steps that the oldest sampled token lags behind."""
        sampled = (v for d in self.documents for v, action in zip(d.versions, d.action_mask, strict=True) if action)
        return self.version - min(sampled, default=self.version)


@dataclass(slots=True)
class Micro:
    """One forward's worth of one update.

    mask: bool [A], false where the behaviour log-prob is not finite. proximal, reference: log-probs (nats, [A])
    under pi_old and the reference, None where not computed. advantage: [A], set by `assign_advantages`. kept: by name
    of a mask, bool [A], set by `assign_masks`. values, returns: [A], old and to be learned, with a critic.
    """

    pack: PackedBatch
    actions: ActionTokens
    mask: Tensor
    proximal: Tensor | None = None
    reference: Tensor | None = None
    advantage: Tensor | None = None
    kept: dict[str, Tensor] = field(default_factory=dict)
    values: Tensor | None = None
    returns: Tensor | None = None


def plan(
    batch: RolloutBatch,
    settings: RlSettings,
    step: int,
    device: torch.device,
    ranks: int = 1,
    quadratic: float = QUADRATIC_LENGTH,
) -> list[list[Micro]]:
    """Rows into at most `update_per_rollout` updates, in order or shuffled by (seed, step), each into micro-batches,
    as many as make whole rounds of `ranks` if there are documents enough. quadratic: as of `microbatches`.

    Raises SequenceTooLong, naming the sample.
    """
    rows = list(range(len(batch.documents)))
    if settings.shuffle:
        random.Random(f"{settings.seed}/{step}").shuffle(rows)
    cuts = [part.tolist() for part in torch.tensor(rows).tensor_split(settings.update_per_rollout) if len(part)]
    cap = settings.max_length_per_device
    packs = (microbatches(batch.documents, part, cap, ranks, quadratic) for part in cuts)
    return [[_micro(p.to(device)) for p in one] for one in packs]


def _micro(pack: PackedBatch) -> Micro:
    actions = pack.actions()
    return Micro(pack, actions, actions.behaviour_logp.isfinite())


@torch.no_grad()
def score(
    policy: Policy,
    reference: Likelihood | None,
    critic: Critic | None,
    updates: list[list[Micro]],
    settings: RlSettings,
    peers: Peers = ALONE,
) -> None:
    """Log-probs under the reference everywhere, under pi_old where the weights will have moved, and values.

    During the first update the policy still is pi_old, so its own detached log-probs serve there; masks and critics,
    which look at the whole batch, need them before. Each rank scores its share, and all get all.
    """
    for index, micros in enumerate(updates):
        later = settings.loss in USES_PROXIMAL and index > 0 and not settings.guesses_proximal
        by_policy = bool(critic or settings.masks or later)
        names = [
            *(["reference"] if reference else []),
            *(["proximal"] if by_policy else []),
            *(["values"] if critic else []),
        ]
        if not names:
            continue
        own = []
        for at, counts in peers.rounds(len(micros)):
            columns = _scored(micros[at], policy if by_policy else None, reference, critic, settings.temperature)
            own += [columns] if counts else []
        like = micros[0].actions.behaviour_logp.new_empty(len(names), 0, dtype=columns.dtype)
        every = peers.exchange(own, [m.mask.numel() for m in micros], like)
        for micro, columns in zip(micros, every, strict=True):
            for name, column in zip(names, columns, strict=True):
                setattr(micro, name, column)
    if isinstance(reference, nn.Module):
        cut_again(reference)  # nothing else would let go what its root has gathered


def _scored(
    micro: Micro, policy: Policy | None, reference: Likelihood | None, critic: Critic | None, temperature: float
) -> Tensor:
    """Columns [K, A]: log-probs under the reference and the policy, then values, of those that are there."""
    columns = []
    if reference:
        columns.append(reference.score(micro.pack, micro.actions, temperature)[0])
    if policy:
        logp, _, hidden = policy.score_and_hidden(micro.pack, micro.actions, temperature)
        columns.append(logp)
        if critic:
            columns.append(critic(hidden, micro.pack, micro.actions))
    return torch.stack(columns)


def assign_advantages(batch: RolloutBatch, updates: list[list[Micro]], settings: RlSettings) -> Advantages:
    """Rewards, less a KL penalty if any, to advantages; then to every scored token of every micro-batch.

    The penalty compares the behaviour policy, which drew the tokens, with the reference.
    """
    rewards = batch.rewards.double()
    micros = [micro for update in updates for micro in update]
    penalties = [penalty(micro, settings) for micro in micros]
    if settings.kl_type == "reward":
        for micro, kl in zip(micros, penalties, strict=True):
            rewards = fold_kl(rewards, kl.cpu(), micro.actions.sequence.cpu(), settings.kl_coef)
    lengths = torch.zeros(len(rewards), dtype=torch.int64)
    for micro in micros:
        lengths.index_add_(0, micro.actions.sequence.cpu(), micro.mask.cpu().long())
    adv = advantages(
        rewards, batch.group, cast(Estimator, settings.estimator), settings.norm_var, lengths, batch.baseline
    )
    for micro, kl in zip(micros, penalties, strict=True):
        values = adv.values.to(kl)[micro.actions.sequence]
        micro.advantage = values - settings.kl_coef * kl if settings.kl_type == "advantage" else values
    return adv


def assign_masks(updates: list[list[Micro]], settings: RlSettings) -> None:
    """What the masks keep, judged over the whole batch, so that it does not matter how it is cut."""
    micros = [micro for update in updates for micro in update]
    if not settings.masks or not micros:
        return
    drifts = [log_ratio(cast(Tensor, m.proximal), m.actions.behaviour_logp, m.mask) for m in micros]
    columns = (
        torch.cat(drifts),
        torch.cat([m.actions.sequence for m in micros]),
        torch.cat([m.mask for m in micros]),
        torch.cat([cast(Tensor, m.advantage) for m in micros]),
    )
    sizes = [len(m.mask) for m in micros]
    for name, keep in keep_by_name(settings.masks, settings.limits, *columns).items():
        for micro, part in zip(micros, torch.split(keep, sizes), strict=True):
            micro.kept[name] = part


def penalty(micro: Micro, settings: RlSettings) -> Tensor:
    """KL estimate of each action token, [A], for a penalty in the reward or the advantage; zeros for neither."""
    behaviour = micro.actions.behaviour_logp
    if micro.reference is None or settings.kl_type not in ("reward", "advantage"):
        return torch.zeros_like(behaviour)
    return kl_estimate(behaviour, micro.reference, settings.kl_reward_estimator, micro.mask)
