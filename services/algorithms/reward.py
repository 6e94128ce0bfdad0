"""The reward model's loss: of two responses to a prompt, the better one is to have the higher score."""

import torch.nn.functional as F
from torch import Tensor


def pair_loss(chosen: Tensor, rejected: Tensor, margin: float = 0.0) -> Tensor:
    """Loss of each pair [P] from the scores of both responses [P]: -log sigmoid(chosen - rejected - margin).

    The negative log-likelihood of the labels under Bradley and Terry (1952), as in Ouyang et al. 2022 (arXiv
    2203.02155), eq. 1; margin as in Touvron et al. 2023 (arXiv 2307.09288), eq. 2. Only differences of scores matter.
    """
    return -F.logsigmoid(chosen - rejected - margin)


def ranked(better: Tensor, worse: Tensor) -> Tensor:
    """How far each pair [P] is in the right order: 1, 0, or 1/2 where both are equal, as by the toss of a coin."""
    return ((better > worse).to(better.dtype) + (better >= worse).to(better.dtype)) / 2
