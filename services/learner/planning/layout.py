"""How many ranks hold what of a parameter: copies, shards of each copy, cuts within a layer, cuts of a sequence.

    ranks = copies x shards x tensor

Ranks that cut a sequence are among those that hold different shards. Data is divided over ranks / (tensor x sequence).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from midflight.services.learner.group.tensor_parallel import ADAPTED
from midflight.services.model.outline import Weight

COLUMNS = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head"})
"""Modules whose first dimension tensor parallelism cuts, bias included."""
ROWS = frozenset({"o_proj", "down_proj"})
"""Modules whose weight it cuts along the second dimension; all else is whole on each of its ranks."""
WHOLE = {"lora_A": COLUMNS, "lora_B": ROWS}
"""Matrices of an adapter that are narrow where their module is cut: they are whole too (`group.tensor_parallel`)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The arrangement of a group; every size divides what is left by those before."""

    ranks: int = 1
    copies: int = 1
    tensor: int = 1
    sequence: int = 1

    @property
    def shards(self) -> int:
        """Ranks that a copy of a parameter, or its part of a layer, is cut over (FSDP)."""
        return self.ranks // (self.copies * self.tensor)

    @property
    def data(self) -> int:
        """Ranks, or groups of them, that each compute micro-batches of their own."""
        return self.ranks // (self.tensor * self.sequence)

    def within(self, weight: Weight) -> tuple[int, ...]:
        """The shape of a rank's part of a layer, before it is cut into shards."""
        name = weight.name.rpartition(".")[0]
        matrix = ADAPTED.search(name)
        module = (name[: matrix.start()] if matrix else name).rpartition(".")[2]
        first, *others = weight.shape
        if matrix and module in WHOLE.get(matrix[1], ()):
            return weight.shape
        if module in COLUMNS:
            return (-(-first // self.tensor), *others)
        if module in ROWS and others:
            return (first, -(-others[0] // self.tensor))
        return weight.shape

    def gathered(self, weights: Iterable[Weight]) -> int:
        """Numbers that a rank computes with: what its shards are cut from."""
        return sum(prod(self.within(weight)) for weight in weights)

    def held(self, weights: Iterable[Weight]) -> int:
        """Numbers that rank 0 keeps; it has the largest shard of each, which are rows."""
        return sum(-(-rows // self.shards) * prod(rest) for rows, *rest in map(self.within, weights))
