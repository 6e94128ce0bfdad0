"""Split documents into micro-batches of near-equal work under a token cap.

Work is estimated in floating-point operations of the model: linear in a document's length, plus attention, which is
quadratic. Balancing tokens instead leaves 4 to 12 % more work to the fullest than to the mean.
"""

import heapq
from collections.abc import Sequence
from typing import Any

QUADRATIC_LENGTH = 8192
"""`quadratic_length` of a model that is not known."""
DIFFERENCES = 100_000
"""Items times bins up to which the differencing method is worth its time (0.15 s at 2048 x 48)."""


def quadratic_length(lm: Any) -> float:
    """Length (tokens) at which attention costs as much as all that is linear in the length.

    A token costs 2 operations a parameter in matrices; causal attention over n tokens costs 2 n^2 times heads times
    head size in each layer, for its two products.
    """
    config = lm.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tables = lm.get_input_embeddings().weight
    matrices = sum(p.numel() for p in lm.parameters() if p.dim() > 1)
    head = lm.get_output_embeddings()
    if head is None or head.weight is not tables:
        matrices -= tables.numel()  # looked up, not multiplied
    return float(matrices / (config.num_hidden_layers * config.num_attention_heads * size))


def document_cost(length: int, quadratic: float = QUADRATIC_LENGTH) -> float:
    """Relative work of a document of `length` tokens, in tokens of a short one."""
    return length + length * length / quadratic


def longest_first(costs: Sequence[float], bins: int) -> list[list[int]]:
    """Put each item, dearest first, into the cheapest bin so far (Graham's LPT rule, 1969).

    Returns `bins` lists of indices into `costs`; a list is empty when there are fewer items than bins.
    """
    heap: list[tuple[float, int]] = [(0.0, i) for i in range(bins)]
    out: list[list[int]] = [[] for _ in range(bins)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, chosen = heapq.heappop(heap)
        out[chosen].append(index)
        heapq.heappush(heap, (load + costs[index], chosen))
    return out


def differencing(costs: Sequence[float], bins: int) -> list[list[int]]:
    """Join partial solutions, those with the largest spread first, dear bins with cheap ones (Karmarkar and Karp 1982,
    for several bins as in Korf 2009).

    Returns `bins` lists of indices into `costs`, as `longest_first` does, mostly with less spread.
    """
    if not costs:
        return [[] for _ in range(bins)]
    heap: list[tuple[float, int, list[tuple[float, list[int]]]]] = []
    for index, cost in enumerate(costs):
        loads: list[tuple[float, list[int]]] = [(cost, [index]), *((0.0, []) for _ in range(bins - 1))]
        heap.append((-cost if bins > 1 else 0.0, index, loads))
    heapq.heapify(heap)
    while len(heap) > 1:
        (_, order, dear), (_, _, cheap) = heapq.heappop(heap), heapq.heappop(heap)
        pairs = zip(dear, reversed(cheap), strict=True)
        joined = sorted(((a + b, x + y) for (a, x), (b, y) in pairs), key=lambda one: -one[0])
        heapq.heappush(heap, (joined[-1][0] - joined[0][0], order, joined))
    return [indices for _, indices in heap[0][2]]


def partition(
    lengths: Sequence[int], cap: int, ranks: int = 1, costs: Sequence[float] | None = None
) -> list[list[int]]:
    """Split documents of `lengths` tokens into the fewest bins that hold at most `cap` tokens each, of equal `costs`.

    Their number is a multiple of `ranks`, or that of the documents when there are too few for the last round. The bins
    come dearest first, so that the ranks that work at the same time have similar ones. costs: by default
    `document_cost` of the lengths. The same arguments give the same bins.

    Returns lists of indices, each sorted by descending length so that neighbours have similar lengths.
    Every length must be <= `cap`; the caller names the offender, see `packing.SequenceTooLong`.
    """
    if not lengths:
        return []
    if max(lengths) > cap:
        raise ValueError(f"a document of {max(lengths)} tokens does not fit the cap of {cap}")
    costs = [document_cost(n) for n in lengths] if costs is None else costs
    bins = -(-sum(lengths) // (cap * ranks)) * ranks
    while True:
        methods = [longest_first, *([differencing] if len(lengths) * bins <= DIFFERENCES else [])]
        splits = [method(costs, bins) for method in methods]
        held = [split for split in splits if all(sum(lengths[i] for i in part) <= cap for part in split)]
        if held:
            return _arranged(min(held, key=lambda split: _most(split, costs)), lengths, costs)
        bins += ranks


def imbalance(costs: Sequence[float], ranks: int) -> float:
    """How much longer rounds of `ranks` bins take than if each had the mean work: 1 is balance.

    costs: of the bins, in the order in which they are computed.
    """
    rounds = [costs[first : first + ranks] for first in range(0, len(costs), ranks)]
    return sum(map(max, rounds)) * ranks / sum(costs) if costs and sum(costs) else 1.0


def _most(split: list[list[int]], costs: Sequence[float]) -> float:
    return max(sum(costs[i] for i in part) for part in split)


def _arranged(split: list[list[int]], lengths: Sequence[int], costs: Sequence[float]) -> list[list[int]]:
    parts = [sorted(part, key=lambda i: (-lengths[i], i)) for part in split if part]
    return sorted(parts, key=lambda part: (-sum(costs[i] for i in part), part))
