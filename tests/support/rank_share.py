"""One rank of two: its share of an update's loss and gradient, summed over the group, printed by rank 0.

Run by torchrun; see `test_learner_rank`.
"""

import json
import sys

import torch
import torch.distributed as dist

from midflight.services.algorithms.aggregate import Denominators, aggregate, token_weights
from midflight.services.learner.rank import over_ranks

CUT = 9
"""Tokens of rank 0: the first documents."""


def share(mode: str, of: slice, together: bool) -> tuple[float, list[float]]:
    """The aggregate over a part of the tokens, with denominators of the whole group's."""
    generator = torch.Generator().manual_seed(1)
    sequence = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4, 4, 4, 4])[of]
    x = torch.randn(15, generator=generator, dtype=torch.float64)[of].requires_grad_()
    mask = (torch.rand(15, generator=generator) < 0.8)[of]
    counts = len(sequence), len(set(sequence.tolist()))
    tokens, sequences = over_ranks(*counts) if together else counts
    weights = token_weights(mode, sequence, Denominators(tokens, sequences, 6))  # type: ignore[arg-type]
    loss = aggregate(x.square(), mask, weights)
    loss.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return loss.item(), x.grad.tolist()


def main(modes: list[str]) -> None:
    """Sum the shares; print both as one process has them and as two do, by mode."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {}
    for mode in modes:
        part = slice(0, CUT) if rank == 0 else slice(CUT, 15)
        loss, gradient = share(mode, part, together=True)
        placed = torch.zeros(16, dtype=torch.float64)
        placed[part] = torch.tensor(gradient, dtype=torch.float64)
        placed[15] = loss
        dist.all_reduce(placed)
        whole, every = share(mode, slice(0, 15), together=False)
        found[mode] = [placed.tolist(), [*every, whole]]
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
