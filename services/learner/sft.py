"""One supervised step: negative log-likelihood of the marked tokens, mean over all of them."""

from collections.abc import Sequence

import torch

from .metrics import StepReport
from .optim import PolicyOptimizer
from .packing import Document, balance, microbatches
from .partition import quadratic_length
from .peers import ALONE, Peers
from .policy import Policy


def sft_update(
    policy: Policy,
    optimizer: PolicyOptimizer,
    documents: Sequence[Document],
    max_length_per_device: int,
    peers: Peers = ALONE,
) -> StepReport:
    """One optimizer update on `documents`; tokens to learn are those with action_mask true.

    The loss is -sum log p / number of marked tokens in the whole batch, so it does not depend on how
    micro-batches are cut, nor on how many `peers`, each with the whole batch, divide them. Metrics: loss (nats a
    token), entropy, grad_norm, lr, tokens, action_tokens, and those of `packing.balance`. Raises ValueError when
    nothing is marked, SequenceTooLong naming the sample.
    """
    device = next(policy.parameters()).device
    quadratic = quadratic_length(policy.lm)
    cut = microbatches(documents, range(len(documents)), max_length_per_device, peers.count, quadratic)
    packs = [p.to(device) for p in cut]
    marked = sum(int(p.action_mask.sum()) for p in packs)
    if not marked:
        raise ValueError("no token of the batch is marked for learning: check the assistant mask")
    rate = optimizer.advance()
    optimizer.zero_grad()
    losses: list[float] = []
    entropies: list[float] = []
    for at, mine in peers.rounds(len(packs)):
        logp, entropy = policy.score(packs[at], packs[at].actions())
        loss = -logp.sum() / marked
        torch.autograd.backward(loss if mine else loss * 0.0)
        losses += [loss.item()] if mine else []
        entropies += [entropy.sum().item()] if mine else []
    norm = optimizer.update()
    return StepReport(
        {
            "loss": peers.total(losses),
            "entropy": peers.total(entropies) / marked,
            "grad_norm": norm,
            "lr": rate,
            "tokens": float(sum(p.ids.numel() for p in packs)),
            "action_tokens": float(marked),
            **balance([packs], max_length_per_device, peers.count, quadratic),
        }
    )
