"""Supervised learning: negative log-likelihood of the marked tokens, mean over all of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from midflight.services.learner.group.columns import everyones
from midflight.services.learner.group.peers import ALONE, Peers
from midflight.services.learner.group.sharding import whole
from midflight.services.learner.metrics import StepReport
from midflight.services.learner.network.head import CHUNK_ELEMENTS
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.optimizers.optim import PolicyOptimizer
from midflight.services.learner.packs.packing import ActionTokens, Document, PackedBatch
from midflight.services.learner.packs.partition import quadratic_length

from .objective import Objective, Sums, by_document, update


class Imitation(Objective):
    """-sum log p of marked tokens. Metrics: loss and nll (nats a token), perplexity, entropy; of held-out data also
    token_accuracy, the share of tokens that are the most likely one, and greedy, the share of documents of which all
    are: exactly those responses that decoding without sampling would give.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def loss(self, batch: PackedBatch) -> tuple[Tensor, Sums]:
        """Summed over marked tokens."""
        logp, entropy = self.policy.score(batch, batch.actions())
        n = len(logp)
        return -logp.sum(), {"nll": (-logp.detach().sum(), n), "entropy": (entropy.detach().sum(), n)}

    def measure(self, batch: PackedBatch) -> Sums:
        """Also whether the tokens are the most likely ones."""
        actions = batch.actions()
        logp, entropy, hidden = self.policy.score_and_hidden(batch, actions)
        right = most_likely(self.policy, batch, actions, hidden) == actions.targets
        wrong = by_document((~right).float(), actions.sequence, batch.documents)
        n = len(logp)
        return {
            "nll": (-logp.sum(), n),
            "entropy": (entropy.sum(), n),
            "token_accuracy": (right.sum(), n),
            "greedy": ((wrong == 0).sum(), batch.documents),
        }

    def report(self, means: dict[str, float]) -> dict[str, float]:
        """With the perplexity."""
        return {**means, "perplexity": math.exp(min(means["nll"], 700.0))}


def most_likely(policy: Policy, batch: PackedBatch, actions: ActionTokens, hidden: Tensor) -> Tensor:
    """The most likely token at each of a pack's A action tokens, int64 [A]; hidden: what `policy` returned there."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    table = whole(policy.lm.get_output_embeddings().weight).to(hidden.device, wide).t()
    rows = max(1, CHUNK_ELEMENTS // table.shape[1])
    found = torch.cat([(part.to(wide) @ table).argmax(-1) for part in torch.split(hidden, rows)])
    return everyones([found], policy.part(batch, actions))[0]


def sft_update(
    policy: Policy,
    optimizer: PolicyOptimizer,
    documents: Sequence[Document],
    max_length_per_device: int,
    peers: Peers = ALONE,
) -> StepReport:
    """One optimizer update on `documents`; tokens to learn are those with action_mask true. See `objective.update`."""
    quadratic = quadratic_length(policy.lm)
    return update(Imitation(policy), policy, optimizer, documents, max_length_per_device, peers, quadratic)
