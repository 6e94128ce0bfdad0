"""What is learned from rows of data, and one update on a batch of them; the objectives themselves are beside this."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from midflight.services.learner.group.peers import ALONE, Peers
from midflight.services.learner.group.sharding import cut_again
from midflight.services.learner.metrics import StepReport
from midflight.services.learner.network.policy import device_of
from midflight.services.learner.optimizers.optim import PolicyOptimizer
from midflight.services.learner.packs.packing import Document, PackedBatch, SequenceTooLong, balance, pack
from midflight.services.learner.packs.partition import QUADRATIC_LENGTH, document_cost, partition

Sums = dict[str, tuple[Tensor | float, int]]
"""Metric -> (sum, of how many); what is reported is the mean over the whole batch."""


class Objective:
    """A loss that is a sum over parts of a batch (tokens, pairs), divided by their number in the whole batch."""

    together = 1
    """Documents that belong together, neighbours in a batch: they stay in one micro-batch."""

    def size(self, batch: PackedBatch) -> int:
        """How many parts of the loss a micro-batch has: tokens to be learned, unless a subclass counts others."""
        return int(batch.action_mask.sum())

    def loss(self, batch: PackedBatch) -> tuple[Tensor, Sums]:
        """The sum of its parts, and what is reported; the same names for every micro-batch."""
        raise AssertionError("an objective has a loss")

    def measure(self, batch: PackedBatch) -> Sums:
        """What is reported of held-out data."""
        return self.loss(batch)[1]

    def report(self, means: dict[str, float]) -> dict[str, float]:
        """Means by name, with what follows from them."""
        return means


def packs(
    documents: Sequence[Document], together: int, cap: int, ranks: int = 1, quadratic: float = QUADRATIC_LENGTH
) -> list[PackedBatch]:
    """Balanced micro-batches of at most `cap` positions, in rounds of `ranks`, of whole groups of `together`
    documents; `sequence` is the place of a document in `documents`.

    Raises SequenceTooLong, naming the sample, when one group exceeds `cap`.
    """
    groups = [range(first, first + together) for first in range(0, len(documents), together)]
    lengths = [sum(documents[one].positions for one in group) for group in groups]
    for group, length in zip(groups, lengths, strict=True):
        if length > cap:
            raise SequenceTooLong(documents[group[0]].name, length, cap)
    costs = [sum(document_cost(documents[one].positions, quadratic) for one in group) for group in groups]
    parts = partition(lengths, cap, ranks, costs)
    return [pack(documents, [one for at in part for one in groups[at]]) for part in parts]


def update(
    objective: Objective,
    module: nn.Module,
    optimizer: PolicyOptimizer,
    documents: Sequence[Document],
    cap: int,
    peers: Peers = ALONE,
    quadratic: float = QUADRATIC_LENGTH,
) -> StepReport:
    """One optimizer update on `documents`; skipped and counted when the gradient norm is not finite.

    The result does not depend on how micro-batches of at most `cap` positions are cut, nor on how many `peers`, each
    with the whole batch, divide them. Raises ValueError when nothing is to be learned, SequenceTooLong naming the
    sample; nothing is changed then.
    """
    device = device_of(module)
    cut = [one.to(device) for one in packs(documents, objective.together, cap, peers.count, quadratic)]
    size = sum(objective.size(one) for one in cut)
    if not size:
        raise ValueError("no token of the batch is marked for learning: check the assistant mask")
    rate = optimizer.advance()
    optimizer.zero_grad()
    total: Sums = {}
    for at, mine in peers.rounds(len(cut)):
        loss, found = objective.loss(cut[at])
        loss = loss / size
        torch.autograd.backward(loss if mine else loss * 0.0)
        total = _added(total, {"loss": (loss.detach(), 0), **found}, mine)
    norm = optimizer.update()
    loss_sum = peers.total([float(total.pop("loss")[0])])
    means = {"loss": loss_sum, **objective.report(_means(total, peers))}
    tokens = float(sum(one.ids.numel() for one in cut))
    marked = float(sum(int(one.action_mask.sum()) for one in cut))
    filled = balance([cut], cap, peers.count, quadratic)
    report = {**means, "grad_norm": norm, "lr": rate, "tokens": tokens, "action_tokens": marked, **filled}
    return StepReport(report | {"skipped_updates": float(not math.isfinite(norm))})


@torch.no_grad()
def evaluate(
    objective: Objective, module: nn.Module, documents: Sequence[Document], cap: int, peers: Peers = ALONE
) -> dict[str, float]:
    """Means over held-out documents, by name; otherwise as `update`, and nothing is learned."""
    device = device_of(module)
    cut = packs(documents, objective.together, cap, peers.count)
    total: Sums = {}
    for at, mine in peers.rounds(len(cut)):
        total = _added(total, objective.measure(cut[at].to(device)), mine)
    cut_again(module)
    return objective.report(_means(total, peers))


def _added(total: Sums, found: Mapping[str, tuple[Tensor | float, int]], counts: bool) -> Sums:
    """With what one micro-batch has, or, of one that another rank has, its names alone."""
    out: Sums = {}
    for name, (value, n) in found.items():
        before, of = total.get(name, (0.0, 0))
        out[name] = (float(before) + float(value), of + n) if counts else (before, of)
    return out


def _means(total: Sums, peers: Peers) -> dict[str, float]:
    sums = {name: (peers.total([float(value)]), peers.total([float(n)])) for name, (value, n) in total.items()}
    return {name: value / max(1.0, n) for name, (value, n) in sums.items()}


def by_document(values: Tensor, sequence: Tensor, documents: int) -> Tensor:
    """Sums [documents] over the tokens [A] of each document of a micro-batch, in its order; each has at least one."""
    _, local = torch.unique_consecutive(sequence, return_inverse=True)
    return values.new_zeros(documents).index_add(0, local, values)
