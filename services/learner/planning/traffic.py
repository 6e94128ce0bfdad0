"""How many bytes a rank of a trainer sends in a step, collective by collective. Plain sums.

By ring algorithms over n ranks: an all-gather or reduce-scatter of what is B bytes whole sends B (n - 1) / n, an
all-reduce twice as much. As many are received.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from .layout import Layout
from .memory import Training, kv_numbers, narrow
from .network import WIDE


@dataclass(frozen=True, slots=True)
class Passes:
    """Passes of a rank in a step. trained: forward and backward. scored: forward only, of policy, reference, critic."""

    trained: int
    scored: int


@dataclass(frozen=True, slots=True)
class Flow:
    """Bytes that a rank sends by one kind of collective, in a micro-batch, trained if any are, and in a whole step."""

    name: str
    micro_batch: int
    step: int


def flows(layout: Layout, training: Training, passes: Passes) -> list[Flow]:
    """All that are not empty."""
    network, model = training.network, training.network.model
    rest, layers = network.rest(layout), sum(network.layers(layout, training.bf16))
    again = 0 if network.small else layers  # layers are let go and gathered once more for the backward pass
    shards = layout.shards
    gradients, theirs = network.reduced(layout)
    reduced = max(WIDE, network.size) * layout.held(network.trained)
    number, layer_tokens = narrow(training), training.tokens * len(model.layers)
    summed = 2 * _cut(layer_tokens * model.head.shape[1] * number, layout.tensor)
    keys = layer_tokens * kv_numbers(model) // layout.tensor * number
    hops, ring = layout.sequence - 1, layout.sequence
    forward = 1 + (1 / training.recompute if training.recompute else 0)
    """Forward passes in a trained one, of what layers send."""
    made = (
        ("FSDP all-gather", _cut(rest + layers, shards), _cut(again, shards)),
        ("FSDP reduce-scatter", 0, _cut(gradients + sum(theirs), shards)),
        ("DDP all-reduce", 0, 2 * _cut(reduced, layout.copies)),
        # Attention's and the MLP's outputs are added up, and in the backward pass what flows back into them.
        ("TP all-reduce", 2 * summed, int(2 * summed * forward)),
        # Keys and values pass the other ranks; in the backward pass their gradients go all the way round too.
        ("SP ring", hops * keys, int((hops * forward + (ring if hops else 0)) * keys)),
    )
    found = [
        Flow(name, ahead + (behind if passes.trained else 0), (ahead + behind) * passes.trained + ahead * passes.scored)
        for name, ahead, behind in made
    ]
    return [flow for flow in found if flow.step]


def joined(found: Iterable[Flow]) -> list[Flow]:
    """Those of one kind added up."""
    sums: dict[str, Flow] = {}
    for flow in found:
        old = sums.get(flow.name, Flow(flow.name, 0, 0))
        sums[flow.name] = Flow(flow.name, old.micro_batch + flow.micro_batch, old.step + flow.step)
    return list(sums.values())


def _cut(size: int, ranks: int) -> int:
    return size * (ranks - 1) // ranks
