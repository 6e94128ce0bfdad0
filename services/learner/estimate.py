"""Advantages and value targets of a batch that has values: token sequences to steps, an estimator, and back."""

import torch
from torch import Tensor

from midflight.services.algorithms import estimators
from midflight.services.algorithms.baselines import Advantages, advantages, count_groups
from midflight.services.algorithms.estimators import Estimate
from midflight.services.algorithms.ratios import log_ratio
from midflight.services.algorithms.segments import collapse, dead_band, segments, spread
from midflight.services.algorithms.steps import Steps
from midflight.services.algorithms.tokens import Actions
from midflight.services.algorithms.values import whiten

from .prepare import Micro, RolloutBatch, penalty
from .settings import CriticSettings, RlSettings


def assign_estimates(batch: RolloutBatch, updates: list[list[Micro]], settings: RlSettings) -> Advantages:
    """Set `advantage` and `returns` of every micro-batch by the estimator of the settings.

    A sequence's reward stands on its last action, the KL penalty of kl_type reward on every one. A response that met
    its length limit ended there: its reward is that of what it said, and nothing follows.
    """
    micros = [micro for update in updates for micro in update]
    rewards = batch.rewards.double()
    if settings.critic.center:
        rewards = advantages(rewards, batch.group, "dr_grpo").values
    for micro in micros:
        _assign(micro, rewards, settings)
    counted = torch.cat([micro.mask for micro in micros])
    every = torch.cat([_given(micro.advantage) for micro in micros])
    if settings.critic.whiten:
        every = whiten(every, counted)
        for micro, part in zip(micros, torch.split(every, [len(m.mask) for m in micros]), strict=True):
            micro.advantage = part
    if settings.kl_type == "advantage":
        for micro in micros:
            micro.advantage = _given(micro.advantage) - settings.kl_coef * penalty(micro, settings)
    return count_groups(batch.rewards, batch.group, every[counted])


def trace_reach(updates: list[list[Micro]], settings: RlSettings) -> float | None:
    """Mean share of a sequence's end that reaches its tokens through V-trace's or Retrace's traces; None for others."""
    if settings.estimator not in ("vtrace", "retrace"):
        return None
    c = settings.critic
    c_bar = c.c_bar if settings.estimator == "vtrace" else 1.0
    reached = [estimators.trace_reach(_steps(m, None, settings)[0], c.lamda, c_bar) for u in updates for m in u]
    every = torch.cat(reached)
    return float(every.mean()) if len(every) else None


def _assign(micro: Micro, rewards: Tensor, settings: RlSettings) -> None:
    steps, actions, segment = _steps(micro, rewards, settings)
    estimate = _estimate(steps, str(settings.estimator), settings.critic)
    if segment is not None:
        estimate = spread(estimate, segment)
    micro.advantage, micro.returns = (actions.put(x).to(micro.actions.behaviour_logp) for x in estimate)


def _steps(micro: Micro, rewards: Tensor | None, settings: RlSettings) -> tuple[Steps, Actions, Tensor | None]:
    """The counted action tokens of a micro-batch as steps, at the trace level of the settings."""
    own, c = micro.actions, settings.critic
    actions = Actions.scored(micro.mask, own.positions, own.sequence)
    values = _given(micro.values).double()
    drift = dead_band(log_ratio(_given(micro.proximal), own.behaviour_logp, micro.mask).double(), c.dead_band)
    earned = torch.zeros_like(values)
    if rewards is not None:
        ends = actions.where[actions.last]
        earned[ends] = rewards.to(values)[own.sequence[ends]]
        if settings.kl_type == "reward":
            earned = earned - settings.kl_coef * penalty(micro, settings).double()
    steps = actions.steps(earned, values, None, drift)
    segment = segments(actions, c.trace_level)
    return (steps if segment is None else collapse(steps, segment)), actions, segment


def _estimate(steps: Steps, name: str, c: CriticSettings) -> Estimate:
    match name:
        case "gae":
            return estimators.gae(steps, c.gamma, c.lamda)
        case "td_lambda":
            return estimators.td_lambda(steps, c.gamma, c.lamda)
        case "vtrace":
            return estimators.vtrace(steps, c.gamma, c.lamda, c.rho_bar, c.c_bar)
        case "retrace":
            return estimators.retrace(steps, c.gamma, c.lamda)
        case "clipped_is":
            return estimators.clipped_is(steps, c.gamma, c.lamda, c.clip_ratio)
        case "multistep":
            return estimators.multistep(steps, c.gamma, c.lamda, c.n_steps, c.bootstrap_method)
    raise ValueError(f"no estimator {name!r}")


def _given(x: Tensor | None) -> Tensor:
    assert x is not None
    return x
