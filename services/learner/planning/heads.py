"""What the output layer and the loss hold at their backward pass, in bytes: a chunk of logits and what comes of it."""

from functools import cache
from typing import Any

import torch
from torch._C._distributed_c10d import FakeProcessGroup
from torch._subclasses.fake_tensor import FakeTensorMode

from midflight.services.algorithms.distill import Divergence
from midflight.services.learner.network.head import CHUNK_ELEMENTS
from midflight.services.learner.network.vocabulary import Vocabulary
from midflight.services.learner.objectives.student import chunked_divergence

from .layout import Layout
from .network import WIDE, Network
from .tracing import LiveBytes

CHUNKS, CHUNKS_ENTROPY = 3, 6
"""Buffers as large as a chunk of logits that `head.chunked_logprob` holds, without and with a gradient of entropy."""
FEW = 2
"""Chunks that are run; each further one adds what the last of them did."""


def logprob_head(network: Network, layout: Layout, tokens: int, entropy: bool) -> int:
    """`head.chunked_logprob`, every position scored."""
    rows, width = layout.within(network.model.head)
    chunk = min(tokens, max(1, CHUNK_ELEMENTS // rows)) * rows * WIDE
    narrow = network.model.dtype == torch.bfloat16
    table = rows * width * WIDE * (narrow + (not network.adapters))
    hidden = 2 * tokens * width * network.model.dtype.itemsize
    return (CHUNKS_ENTROPY if entropy else CHUNKS) * chunk + table + hidden


def distillation_head(network: Network, teacher: Network, layout: Layout, tokens: int, kind: Divergence) -> int:
    """`student.chunked_divergence`, every position scored, with the teacher's states and, where it is cut, its head."""
    (words, width), (vocabulary, states) = layout.within(network.model.head), teacher.model.head.shape
    dtypes = network.model.dtype, teacher.model.dtype
    gathered = vocabulary * states * dtypes[1].itemsize if layout.ranks > 1 else 0
    rows = max(1, CHUNK_ELEMENTS // words)
    chunks = -(-tokens // rows)
    sizes, trains = (words, layout.tensor, width, states), not network.adapters
    few, more = (
        _divergence(kind, sizes, min(tokens, n * rows), dtypes, trains, CHUNK_ELEMENTS) for n in (FEW, FEW + 1)
    )
    return gathered + few + max(0, chunks - FEW) * (more - few)


@cache
def _divergence(
    kind: Divergence,
    sizes: tuple[int, int, int, int],
    tokens: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    trains: bool,
    elements: int,
) -> int:
    """Run on tensors without memory; weights and their gradients are not counted.

    sizes: tokens of the vocabulary on a rank, ranks that share it, width of the student's and of the teacher's states.
    """
    count, ranks, width, states = sizes
    others: Any = FakeProcessGroup._create_internal(0, ranks) if ranks > 1 else None
    words = Vocabulary(0, count, others)
    with FakeTensorMode():
        weight = torch.zeros(count, width, dtype=dtypes[0], requires_grad=trains)
        head = torch.zeros(count, states, dtype=dtypes[1])
        weight.grad = torch.zeros_like(weight)
        with LiveBytes([weight, weight.grad, head]) as live:
            hidden = torch.zeros(tokens, width, dtype=dtypes[0], requires_grad=True)
            theirs = torch.zeros(tokens, states, dtype=dtypes[1])
            targets = torch.zeros(tokens, dtype=torch.long)
            read = words.read(hidden)
            loss = chunked_divergence(words, read, weight, theirs, head, targets, kind, elements=elements)[0]
            torch.autograd.backward(loss.sum())
    return int(live.peak)
