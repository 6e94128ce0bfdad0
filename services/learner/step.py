"""One RL step: a scored rollout batch becomes `update_per_rollout` optimizer updates.

The order is fixed: pack; score under the reference and, where the loss needs it, under pi_old; rewards to
advantages; then per update forward, loss, backward over its micro-batches, clip, step.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from midflight.services.algorithms.aggregate import Denominators, aggregate, token_weights
from midflight.services.algorithms.baselines import Advantages
from midflight.services.algorithms.kl import kl_estimate
from midflight.services.algorithms.losses import Sampled, token_loss
from midflight.services.algorithms.masks import together
from midflight.services.algorithms.ratios import between, log_ratio, truncated
from midflight.services.algorithms.values import explained_variance, value_loss

from .estimate import assign_estimates, trace_reach
from .group.peers import ALONE, Peers
from .metrics import LogprobGap, StepReport, Tally, TokenRecord
from .network.critic import CriticTraining
from .network.policy import Likelihood, Policy
from .optimizers.optim import PolicyOptimizer
from .packs.packing import balance
from .packs.partition import quadratic_length
from .prepare import Micro, RolloutBatch, assign_advantages, assign_masks, plan, score
from .records import everyones
from .settings import RlSettings
from .watched import Watched

__all__ = ["RolloutBatch", "rl_update"]


def rl_update(
    policy: Policy,
    reference: Likelihood | None,
    optimizer: PolicyOptimizer,
    batch: RolloutBatch,
    settings: RlSettings,
    critic: CriticTraining | None = None,
    watched: Watched | None = None,
    peers: Peers = ALONE,
) -> StepReport:
    """Train `policy` on `batch` and report. The result does not depend on how micro-batches are cut, nor on how many
    `peers`, each with the whole batch, divide them.

    reference: frozen policy for the KL terms and the `kl` metric; required when settings.kl_type is set. critic: what
    estimates values, with its optimizer; required by the estimators that read them. watched: is told of every token.
    Tokens whose behaviour log-prob is not finite are masked, counted, and stay in the denominators. An update
    whose gradient norm is not finite is skipped and counted. Raises SequenceTooLong, naming the sample, with
    nothing changed.
    """
    if settings.kl_type is not None and reference is None:
        raise ValueError(f"kl_type {settings.kl_type} needs a reference policy")
    if settings.uses_critic != (critic is not None):
        raise ValueError(f"estimator {settings.estimator} {'needs a' if critic is None else 'reads no'} critic")
    settings = settings.at_lag(batch.lag)
    quadratic = quadratic_length(policy.lm)
    updates = plan(batch, settings, optimizer.step, policy.device, peers.count, quadratic)
    score(policy, reference, critic.module if critic else None, updates, settings, peers)
    adv = (assign_estimates if critic else assign_advantages)(batch, updates, settings)
    assign_masks(updates, settings)
    frozen = critic is not None and optimizer.step < settings.critic.warmup_steps
    rate = optimizer.advance()
    if critic:
        critic.optimizer.advance()
    tally, gap = Tally(len(batch.documents)), LogprobGap()
    losses: list[float] = []
    norms: list[float] = []
    for index, micros in enumerate(updates):
        optimizer.zero_grad()
        if critic:
            critic.optimizer.zero_grad()
        counts = [tally.add, *([] if index else [gap.add]), *([watched.add] if watched else [])]
        losses.append(_accumulate(policy, critic, micros, batch.version, settings, counts, peers))
        norms.append(optimizer.norm() if frozen else optimizer.update())
        if critic:
            critic.optimizer.update()
    report = tally.report() | gap.report() | _summary(batch, updates, adv, losses, norms) | {"lr": rate}
    packs = [[micro.pack for micro in micros] for micros in updates]
    report |= balance(packs, settings.max_length_per_device, peers.count, quadratic)
    return StepReport(report | (value_report(updates, settings) if critic else {}))


def value_report(updates: list[list[Micro]], settings: RlSettings) -> dict[str, float]:
    """How good the values were before the update, and how far news travelled along clipped traces."""
    micros = [micro for update in updates for micro in update]
    values = torch.cat([cast(Tensor, m.values)[m.mask] for m in micros])
    returns = torch.cat([cast(Tensor, m.returns)[m.mask] for m in micros])
    found = {
        "value_mean": float(values.mean()) if len(values) else 0.0,
        "value_error": float((values - returns).square().mean()) if len(values) else 0.0,
        "explained_variance": explained_variance(values, returns),
    }
    reach = trace_reach(updates, settings)
    return found if reach is None else found | {"trace_mean": reach}


def _accumulate(
    policy: Policy,
    critic: CriticTraining | None,
    micros: list[Micro],
    version: int,
    settings: RlSettings,
    counts: list[Callable[[TokenRecord], None]],
    peers: Peers,
) -> float:
    """Forward and backward over one update's micro-batches, each of them told to `counts`; returns its loss."""
    denominators = Denominators(
        sum(m.mask.numel() for m in micros), sum(m.pack.documents for m in micros), max_length=settings.max_new_tokens
    )
    losses: list[float] = []
    records: list[TokenRecord] = []
    for at, mine in peers.rounds(len(micros)):
        loss, record = _loss(policy, critic, micros[at], denominators, version, settings)
        torch.autograd.backward(loss if mine else loss * 0.0)
        losses += [loss.item()] if mine else []
        records += [record] if mine else []
    for one in everyones(records, micros, record, peers):
        for count in counts:
            count(one)
    return peers.total(losses)


def _loss(
    policy: Policy,
    critic: CriticTraining | None,
    micro: Micro,
    denominators: Denominators,
    version: int,
    settings: RlSettings,
) -> tuple[Tensor, TokenRecord]:
    """This micro-batch's share of: policy loss + kl_coef * KL - entropy_coef * entropy + critic.coef * value loss."""
    actions, mask = micro.actions, micro.mask
    logp, entropy, hidden = policy.score_and_hidden(micro.pack, actions, settings.temperature)
    now = logp.detach()
    assert micro.advantage is not None  # set for every micro-batch by assign_advantages
    proximal = now if micro.proximal is None else micro.proximal
    if settings.guesses_proximal:
        proximal = between(now, actions.behaviour_logp, (version - actions.versions).clamp(min=0))
    drift = log_ratio(proximal, actions.behaviour_logp, mask)
    sampled = Sampled(
        logp=logp,
        proximal=proximal,
        behaviour=actions.behaviour_logp,
        advantage=micro.advantage,
        mask=mask,
        sequence=actions.sequence,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        cap=settings.tis_cap,
    )
    tokens = token_loss(settings.loss, sampled)
    objective = torch.where(together(micro.kept, mask), tokens.loss, 0.0)
    kl = torch.zeros_like(now)
    if micro.reference is not None:
        kl = kl_estimate(now, micro.reference, "k3", mask)
        if settings.kl_type == "loss":
            weight = truncated(log_ratio(now, actions.behaviour_logp, mask), settings.tis_cap)
            term = kl_estimate(logp, micro.reference, settings.kl_loss_estimator, mask)
            objective = objective + settings.kl_coef * weight * term
    if settings.entropy_coef:
        objective = objective - settings.entropy_coef * entropy
    if critic and micro.values is not None and micro.returns is not None:
        value = critic.module(hidden, micro.pack, actions)
        error = value_loss(value, micro.values, micro.returns, settings.critic.value_clip)
        objective = objective + settings.critic.coef * error
    weights = token_weights(settings.aggregation, actions.sequence, denominators)
    found = (tokens, now, actions.behaviour_logp, micro.advantage, entropy, drift, kl, version - actions.versions)
    return aggregate(objective, mask, weights), TokenRecord(*found, actions.sequence, mask, micro.kept)


def _summary(
    batch: RolloutBatch,
    updates: list[list[Micro]],
    adv: Advantages,
    losses: list[float],
    norms: list[float],
) -> dict[str, float]:
    """What is known per batch rather than per token."""
    finite = [n for n in norms if math.isfinite(n)]
    rewards = batch.rewards.double()
    return {
        "loss": sum(losses) / len(losses),
        "grad_norm": sum(finite) / len(finite) if finite else math.inf,
        "updates": float(len(finite)),
        "skipped_updates": float(len(norms) - len(finite)),
        "sequences": float(len(batch.documents)),
        "tokens": float(sum(m.pack.ids.numel() for u in updates for m in u)),
        "micro_batches": float(sum(len(u) for u in updates)),
        "reward_mean": rewards.mean().item(),
        "reward_std": rewards.std(correction=0).item(),
        "advantage_std": adv.values.std(correction=0).item() if adv.values.numel() else 0.0,
        "groups": float(adv.groups),
        "singleton_groups": float(adv.singletons),
        "flat_groups": float(adv.flat),
    }
