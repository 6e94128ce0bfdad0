"""How many bytes a rank of a learner sends in a step, collective by collective. Plain sums.

By ring algorithms over n ranks: an all-gather or reduce-scatter of what is B bytes whole sends B (n - 1) / n, an
all-reduce twice as much. As many are received.
"""

from dataclasses import dataclass

from midflight.services.learner.group.sharding import SMALL
from midflight.services.model.outline import Outline

from .layout import Layout
from .memory import WIDE, Training, kv_numbers, narrow


@dataclass(frozen=True, slots=True)
class Passes:
    """Passes of a rank in a step. trained: forward and backward. scored: forward only, of policy, reference, critic."""

    trained: int
    scored: int


@dataclass(frozen=True, slots=True)
class Flow:
    """Bytes that a rank sends by one kind of collective, in a micro-batch that is trained and in a whole step."""

    name: str
    micro_batch: int
    step: int


def flows(model: Outline, layout: Layout, training: Training, passes: Passes) -> list[Flow]:
    """All that are not empty."""
    size, number = model.dtype.itemsize, narrow(model, training)
    rest, numbers = layout.gathered(model.rest), sum(map(layout.gathered, model.layers))
    layers = numbers * number
    again = 0 if model.numel <= SMALL else layers  # layers are let go and gathered once more for the backward pass
    shards, summed_in = layout.shards, max(WIDE, size)
    reduced = summed_in * layout.held(model.weights)
    layer_tokens = training.tokens * len(model.layers)
    summed = 2 * _cut(layer_tokens * model.head.shape[1] * number, layout.tensor)
    keys = layer_tokens * kv_numbers(model) // layout.tensor * number
    hops, ring = layout.sequence - 1, layout.sequence
    forward = 1 + (1 / training.recompute if training.recompute else 0)
    """Forward passes in a trained one, of what layers send."""
    made = (
        ("FSDP all-gather", _cut(rest * size + layers, shards), _cut(again, shards)),
        ("FSDP reduce-scatter", 0, _cut((rest + numbers) * summed_in, shards)),
        ("DDP all-reduce", 0, 2 * _cut(reduced, layout.copies)),
        # Attention's and the MLP's outputs are added up, and in the backward pass what flows back into them.
        ("TP all-reduce", 2 * summed, int(2 * summed * forward)),
        # Keys and values pass the other ranks; in the backward pass their gradients go all the way round too.
        ("SP ring", hops * keys, int((hops * forward + (ring if hops else 0)) * keys)),
    )
    found = [
        Flow(name, ahead + behind, (ahead + behind) * passes.trained + ahead * passes.scored)
        for name, ahead, behind in made
    ]
    return [flow for flow in found if flow.step]


def _cut(size: int, ranks: int) -> int:
    return size * (ranks - 1) // ranks
