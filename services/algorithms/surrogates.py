"""What a policy-gradient step maximises, per token: surrogates of the ratio r = pi / anchor and the advantage.

The anchor is the policy that the ratio is taken against: mu, which drew the tokens, or pi_old, at which the update
began. All return losses, to be minimised, with the gradient -A grad log pi at r = 1. `x` is log pi - log anchor
(`ratios.log_ratio`: clamped, 0 with zero gradient where masked) and carries the gradient; advantages are constants.
Shapes [A].
"""

import torch
from torch import Tensor

RATIO_LIMIT = 20.0
"""Cap of a ratio that multiplies a gradient without a clip of its own (DPPO)."""


def ppo(x: Tensor, advantage: Tensor, low: float = 0.2, high: float = 0.2, dual: float | None = None) -> Tensor:
    """max(-r A, -clip(r, 1 - low, 1 + high) A) (Schulman 2017, eq. 7).

    dual: for A < 0 the loss is at most -dual A, so that a ratio that ran away is left alone (Ye 2020; dual > 1).
    """
    ratio = x.exp()
    loss = torch.maximum(-ratio * advantage, -ratio.clamp(1 - low, 1 + high) * advantage)
    if dual is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)


def cispo(x: Tensor, logp: Tensor, advantage: Tensor, low: float = 1.0, high: float = 4.0) -> Tensor:
    """-sg(clip(r, 1 - low, 1 + high)) A log pi (MiniMax-M1, arXiv 2506.13585): clipped tokens keep their gradient.

    low = 1 leaves the lower end open. Masked slots of `logp` must be finite.
    """
    weight = x.detach().exp().clamp(1 - low, 1 + high)
    return -weight * advantage * logp


def gspo(x: Tensor, advantage: Tensor, sequence: Tensor, mask: Tensor, low: float = 3e-4, high: float = 4e-4) -> Tensor:
    """PPO clip of s_i = exp(mean_t log r_t), one ratio a sequence (GSPO, arXiv 2507.18071, eq. 5 and 11).

    In its token form sg(s) pi / sg(pi), so that a sequence's tokens share its ratio and keep their own gradients. Meant
    for the aggregation `seq_mean_token_mean`.
    """
    return ppo(sequence_mean(x, sequence, mask) + x - x.detach(), advantage, low, high)


def sequence_mean(x: Tensor, sequence: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the counted tokens of each sequence, at each of its tokens, detached: log s_i of `gspo`."""
    _, index = torch.unique_consecutive(sequence, return_inverse=True)
    groups = int(index[-1]) + 1 if len(index) else 0
    total = x.new_zeros(groups).index_add(0, index, torch.where(mask, x.detach(), 0.0))
    count = x.new_zeros(groups).index_add(0, index, mask.to(x.dtype))
    return (total / count.clamp(min=1))[index]


def dppo(x: Tensor, logp: Tensor, anchor: Tensor, advantage: Tensor, delta: float = 0.2) -> Tensor:
    """-r A while the probabilities differ by at most `delta` in the direction that A asks for (DPPO, arXiv 2602.04879).

    Divergence in place of a ratio: a rare token may change many-fold, a likely one may not move far (binary total
    variation). logp, anchor: log-probs under pi and the anchor.
    """
    up, down = beyond(logp, anchor, advantage, delta)
    ratio = x.exp().clamp(max=RATIO_LIMIT)
    return torch.where(up | down, 0.0, -ratio * advantage)


def beyond(logp: Tensor, anchor: Tensor, advantage: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """bool [A] each: tokens whose probability has moved by more than delta, up with A > 0, and down with A < 0."""
    moved = logp.detach().exp() - anchor.exp()
    return (advantage > 0) & (moved > delta), (advantage < 0) & (moved < -delta)


def sapo(x: Tensor, advantage: Tensor, up: float = 1.0, down: float = 1.05) -> Tensor:
    """-A sigmoid(t (r - 1)) 4 / t, t = `up` for A > 0 and `down` otherwise (SAPO, arXiv 2511.20347): a soft gate."""
    t = torch.where(advantage > 0, up, down).to(x.dtype)
    return -advantage * torch.sigmoid(t * (x.exp() - 1)) * 4 / t


def topr(x: Tensor, logp: Tensor, advantage: Tensor) -> Tensor:
    """-w A log pi with w = 1 for A > 0, else sg(min(r, 1)) (TOPR, arXiv 2503.14286).

    Good samples are imitated however old, bad ones count for what pi would still do. Per token, as ROLL has it; the
    paper weighs whole trajectories. Masked slots of `logp` must be finite.
    """
    weight = torch.where(advantage > 0, 1.0, x.detach().exp().clamp(max=1.0)).to(x.dtype)
    return -weight * advantage * logp


def reinforce(logp: Tensor, advantage: Tensor) -> Tensor:
    """-A log pi (Williams 1992); with a weight in front, importance-weighted. Masked slots must be finite."""
    return -advantage * logp
