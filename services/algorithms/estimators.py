"""Advantages and value targets of transitions, each a few lines over one recurrence.

Every function takes `Steps` and returns an `Estimate` of the same shape. Which ratio a policy-gradient loss may still
apply differs, and is said by each: the correction may act once only. What they return carries no gradient. Maths in the
dtype of the rewards; float32 is enough (relative error 2e-5 at 32,768 steps of gamma = lambda = 1), bfloat16 is not.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import fast
from .recurrence import recur, windowed
from .steps import Steps

Bootstrap = Literal["gae", "td", "mc"]


class Estimate(NamedTuple):
    """advantages: for the policy loss. returns: targets for the value function. Both [..., T]."""

    advantages: Tensor
    returns: Tensor


def gae(steps: Steps, gamma: float = 0.99, lamda: float = 0.95) -> Estimate:
    """Generalised advantage estimation: A_t = delta_t + gamma lambda A_{t+1} (Schulman 2016, eq. 16). On-policy."""
    if found := fast.gae(steps, gamma, lamda):
        return Estimate(*found)
    with torch.no_grad():
        advantages = recur(steps.going_on(gamma * lamda), steps.delta(gamma))
        return Estimate(advantages, advantages + steps.values)


@torch.no_grad()
def td_lambda(steps: Steps, gamma: float = 0.99, lamda: float = 0.95) -> Estimate:
    """Lambda-return G_t = r_t + gamma ((1 - lambda) V(s_{t+1}) + lambda G_{t+1}) (Sutton and Barto 2018, eq. 12.18).

    Equals `gae` plus V. At a cut without a termination all weight is on V(s_{t+1}).
    """
    share = steps.going_on(lamda)
    alive = torch.where(steps.terminated, 0.0, share)
    returns = recur(gamma * alive, steps.rewards + gamma * (1 - share) * steps.bootstrap)
    return Estimate(returns - steps.values, returns)


def vtrace(
    steps: Steps,
    gamma: float = 0.99,
    lamda: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    pg_rho_bar: float | None = None,
) -> Estimate:
    """V-trace (Espeholt 2018, eq. 1 and 4):

        vs_t - V_t = min(rho_bar, rho_t) delta_t + gamma lambda min(c_bar, rho_t) (vs_{t+1} - V_{t+1})
        A_t        = min(pg_rho_bar, rho_t) (r_t + gamma vs_{t+1} - V_t)
                   = min(pg_rho_bar, rho_t) (delta_t + gamma (vs_{t+1} - V_{t+1}))

    The advantages hold the ratio pi / mu: a loss may clip around the proximal policy but not weigh by it again.
    The value function tends to that of the policy min(rho_bar mu, pi), normalised. Raises ValueError if
    rho_bar < c_bar, for which the paper's contraction does not hold.
    """
    if rho_bar < c_bar:
        raise ValueError(f"V-trace needs rho_bar >= c_bar, got {rho_bar:g} < {c_bar:g}")
    most = rho_bar if pg_rho_bar is None else pg_rho_bar
    if found := fast.vtrace(steps, gamma, lamda, rho_bar, c_bar, most):
        return Estimate(*found)
    with torch.no_grad():
        rho, delta = steps.ratio, steps.delta(gamma)
        weight = rho.clamp(max=rho_bar)
        kept = weight if c_bar == rho_bar else rho.clamp(max=c_bar)
        correction = recur(steps.traces(gamma * lamda, kept), weight * delta)
        ahead = torch.where(steps.cut, 0.0, _shifted(correction))
        advantages = (weight if most == rho_bar else rho.clamp(max=most)) * torch.add(delta, ahead, alpha=gamma)
        return Estimate(advantages, steps.values + correction)


@torch.no_grad()
def retrace(steps: Steps, gamma: float = 0.99, lamda: float = 0.95) -> Estimate:
    """Retrace(lambda) with a state-value baseline (Munos 2016, eq. 4, V in place of Q):

        A_t = delta_t + gamma lambda min(1, rho_{t+1}) A_{t+1},    returns V_t + min(1, rho_t) A_t

    A_t belongs to the action taken, which is not weighed: a loss applies its own ratio pi / mu. The returns are those
    of V-trace with rho_bar = c_bar = 1 and the same lambda. With V for Q the correction of later actions is no longer
    centred, so off-policy it is biased where Retrace proper is not.
    """
    kept = steps.ratio.clamp(max=1.0)
    advantages = recur(steps.traces(gamma * lamda, _shifted(kept)), steps.delta(gamma))
    return Estimate(advantages, steps.values + kept * advantages)


@torch.no_grad()
def retrace_q(q: Tensor, expected_next_q: Tensor, steps: Steps, gamma: float = 0.99, lamda: float = 0.95) -> Tensor:
    """Retrace targets of Q(s_t, a_t) (Munos 2016, eq. 4).

    q [..., T]: Q(s_t, a_t). expected_next_q: E_pi Q(s_{t+1}, .). The values of `steps` are not read.
    """
    kept = steps.ratio.clamp(max=1.0)
    delta = steps.rewards + gamma * torch.where(steps.terminated, 0.0, expected_next_q) - q
    return q + recur(steps.traces(gamma * lamda, _shifted(kept)), delta)


@torch.no_grad()
def clipped_is(steps: Steps, gamma: float = 0.99, lamda: float = 0.95, clip_ratio: float = 0.2) -> Estimate:
    """GAE with every step weighed by w_t = clip(rho_t, 1 - clip_ratio, 1 + clip_ratio): A_t = w_t (delta_t + ...).

    Clipped on both sides, so that a long product of weights hardly drifts. clip_ratio = 0 is GAE.
    """
    weight = steps.ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    advantages = recur(steps.traces(gamma * lamda, weight), weight * steps.delta(gamma))
    return Estimate(advantages, advantages + steps.values)


@torch.no_grad()
def multistep(
    steps: Steps,
    gamma: float = 0.99,
    lamda: float = 0.95,
    n_steps: int | None = 5,
    bootstrap_method: Bootstrap = "gae",
) -> Estimate:
    """At most n steps ahead, None: to the cut.

    td   m steps of rewards, then V: G_t = sum_{k<m} gamma^k r_{t+k} + gamma^m V(s_{t+m}), m = n or up to the cut
    gae  the first n terms of GAE: sum_{k<n} (gamma lambda)^k delta_{t+k}; with lambda = 1 the same as td
    mc   rewards up to the cut, V only where that is no termination; n_steps is not read
    """
    window = steps.rewards.shape[-1] if n_steps is None else n_steps
    if bootstrap_method == "mc":
        ends = torch.where(steps.cut, steps.bootstrap, 0.0)
        returns = recur(steps.going_on(gamma), steps.rewards + gamma * ends)
        return Estimate(returns - steps.values, returns)
    share = lamda if bootstrap_method == "gae" else 1.0
    advantages = windowed(steps.going_on(gamma * share), steps.delta(gamma), window)
    return Estimate(advantages, advantages + steps.values)


def reinforce(steps: Steps, gamma: float = 0.99) -> Estimate:
    """Discounted reward to go, V as the baseline (Williams 1992); without V pass zeros and take a baseline after."""
    return multistep(steps, gamma, bootstrap_method="mc")


@torch.no_grad()
def trace_reach(steps: Steps, lamda: float = 1.0, c_bar: float = 1.0) -> Tensor:
    """w_t = prod_{j>t} lambda min(c_bar, rho_j) up to the cut: how much of the end's news reaches step t, [..., T].

    With c_bar = 1 and log rho ~ N(-s^2 / 2, s^2) it decays by about e^(-0.4 s) a step, whatever the data teach: a
    mean below a half says that early steps learn next to nothing.
    """
    log_trace = torch.log(lamda * steps.ratio.clamp(max=c_bar))
    return recur(steps.going_on(1.0), torch.where(steps.cut, 0.0, _shifted(log_trace))).exp()


def _shifted(x: Tensor) -> Tensor:
    """x_{t+1}, 0 at the end."""
    return torch.nn.functional.pad(x[..., 1:], (0, 1))
