"""Direct preference optimization: a policy learns from pairs what is better, without a reward model.

Rafailov et al. 2023 (arXiv 2305.18290), eq. 7, with the policy's implicit reward r = beta * log(pi(y|x) / ref(y|x)).
Pure functions of tensors; a pair is one chosen and one rejected response to the same prompt.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

DpoKind = Literal["sigmoid", "ipo"]


@dataclass(frozen=True, slots=True)
class PairRatios:
    """Of P pairs: log(pi / ref) of each response, summed over its tokens (nats), and how many these are; all [P]."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def margin(self) -> Tensor:
        """By how much more the policy has moved towards the chosen response (nats) [P]."""
        return self.chosen - self.rejected


def dpo_loss(kind: DpoKind, ratios: PairRatios, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Loss of each pair [P].

    sigmoid: -log sigmoid(beta * h), h the margin. With label_smoothing e, the chance that a pair's labels are swapped,
    it is conservative DPO: -(1 - e) log sigmoid(beta * h) - e log sigmoid(-beta * h) (Mitchell 2023, "A note on DPO
    with noisy preferences", eq. 3).
    ipo: (h - 1 / (2 * beta))^2 with h of the mean log-ratio a token (Azar et al. 2023, arXiv 2310.12036, eq. 17; means
    in place of sums as its authors later advised and TRL has it), which stays finite where all pairs agree.
    """
    if kind == "ipo":
        mean = ratios.chosen / ratios.chosen_tokens - ratios.rejected / ratios.rejected_tokens
        return (mean - 1 / (2 * beta)).square()
    h = beta * ratios.margin
    return -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)
