"""The seam between scheduling and arithmetic: what the engine asks of a model."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor


class BadWeights(ValueError):
    """A state dict does not fit the running model or is not finite; nothing was changed."""


class Forward(Protocol):
    """A causal LM with a cache of dense rows [0, n), one row a sequence."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace all weights from a Hugging Face state dict, or raise BadWeights and replace none."""

    def prefill(self, sequences: Sequence[Sequence[int]], source: Sequence[int], first: int) -> Tensor:
        """Cache sequence `source[i]` in row `first + i`; return the logits after its last token, [len(source), V].

        `source` ascends.
        """

    def decode(self, tokens: Tensor, positions: Tensor, longest: int) -> Tensor:
        """Cache one token in each row and return the logits after it, [n, V].

        tokens [n] int64 stand at positions [n] int64, all below `longest`.
        """

    def shrink(self, rows: int, target: Sequence[int], source: Sequence[int], longest: int) -> None:
        """Move row `source[i]` to row `target[i]`, then drop all rows from `rows` on."""


def check_weights(expected: Mapping[str, torch.Size], state: Mapping[str, Tensor], ignored: set[str]) -> None:
    """Raise BadWeights unless `state` has exactly the expected names and shapes, and only finite numbers.

    Names in `ignored` may be present or absent.
    """
    missing = sorted(expected.keys() - state.keys() - ignored)
    unknown = sorted(state.keys() - expected.keys() - ignored)
    if missing or unknown:
        raise BadWeights(f"weights do not fit the model: missing {missing[:3]}, unknown {unknown[:3]} (first 3 each)")
    for name, shape in expected.items():
        tensor = state.get(name)
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise BadWeights(f"weights do not fit the model: {name} is {tuple(tensor.shape)}, not {tuple(shape)}")
        if not bool(tensor.isfinite().all()):
            raise BadWeights(f"weights are not finite: {name} has NaN or infinity; the learner has diverged")
