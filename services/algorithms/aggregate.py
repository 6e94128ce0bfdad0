"""From per-token losses to one number, with denominators of the WHOLE update.

Each micro-batch (and each rank) adds its own sum over a global denominator, so the loss and its gradient do not
depend on how the update was cut. Denominators count every action token, also those a mask later rejects:
rejecting tokens cannot inflate the step.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "const"]


@dataclass(frozen=True, slots=True)
class Denominators:
    """Counts over one optimizer update, all micro-batches and ranks together.

    tokens: action tokens; sequences: documents; max_length: action tokens a document may have at most.
    """

    tokens: int
    sequences: int
    max_length: int


def token_weights(mode: Aggregation, sequence: Tensor, denominators: Denominators) -> Tensor:
    """Weight of each token so that sum(weight * loss) over the update is the aggregate.

    sequence int64 [A] names each token's document; a document must lie whole in one micro-batch.
    Returns float64, [A] for seq_mean_token_mean and a scalar otherwise:
    token_mean 1 / tokens; seq_mean_token_sum 1 / sequences; const 1 / (sequences * max_length), which is the
    Dr. GRPO paper's; seq_mean_token_mean 1 / (sequences * tokens of the document), GRPO and GSPO.
    """
    if mode == "seq_mean_token_mean":
        _, inverse, counts = torch.unique(sequence, return_inverse=True, return_counts=True)
        share: Tensor = counts[inverse].double() * max(1, denominators.sequences)
        return share.reciprocal()
    scale = {
        "token_mean": denominators.tokens,
        "seq_mean_token_sum": denominators.sequences,
        "const": denominators.sequences * denominators.max_length,
    }[mode]
    return torch.tensor(1.0 / max(1, scale), dtype=torch.float64, device=sequence.device)


def aggregate(values: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """sum of weights * values over unmasked tokens: this micro-batch's share of the aggregate; scalar.

    values [A]; mask bool [A]; weights from `token_weights`. Masked slots may hold NaN.
    """
    return (torch.where(mask, values, 0.0) * weights.to(values.dtype)).sum()
