"""The general path: any Hugging Face causal LM through its own forward and its own cache.

Sequences of equal length that arrive together form a cohort with one cache, so there is never any padding and
nothing has to be known of the model's masks or positions. Each cohort is one forward a token: right for every
architecture, slower than the fused path when lengths differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .forward import check_weights


@dataclass(slots=True)
class _Cohort:
    """Rows decoded together: `cache` entry i belongs to `rows[i]`."""

    rows: list[int]
    index: Tensor
    cache: Any


class GenericForward:
    """`Forward` for any causal LM whose cache can select batch entries; see there for the methods' contracts."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model = model.to(device).eval()
        self._device = device
        self._cohorts: list[_Cohort] = []
        self._vocabulary = int(model.config.vocab_size)
        probe = self._model(torch.zeros(1, 1, dtype=torch.int64, device=device), use_cache=True)
        if not hasattr(getattr(probe, "past_key_values", None), "batch_select_indices"):
            raise ValueError(
                f"model type {model.config.model_type!r} gives no key-value cache: the embedded engine cannot decode it"
            )

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Forward.load`."""
        own = self._model.state_dict()
        first_name = {tensor.data_ptr(): name for name, tensor in reversed(own.items())}
        tied = {name for name, tensor in own.items() if first_name[tensor.data_ptr()] != name}
        check_weights({name: tensor.shape for name, tensor in own.items()}, state, tied)
        for name, tensor in own.items():
            if name not in tied:
                tensor.copy_(state[name])

    def prefill(self, sequences: Sequence[Sequence[int]], source: Sequence[int], first: int) -> Tensor:
        """See `Forward.prefill`."""
        logits = torch.empty(len(source), self._vocabulary, dtype=self._model.dtype, device=self._device)
        for length in sorted({len(sequence) for sequence in sequences}):
            members = [i for i, sequence in enumerate(sequences) if len(sequence) == length]
            rows = [row for row, origin in enumerate(source) if len(sequences[origin]) == length]
            origin = torch.tensor([members.index(source[row]) for row in rows], device=self._device)
            out = self._model(torch.tensor([sequences[i] for i in members], device=self._device), use_cache=True)
            logits.index_copy_(0, self._indices(rows), out.logits[:, -1].index_select(0, origin))
            out.past_key_values.batch_select_indices(origin)
            self._add([first + row for row in rows], out.past_key_values)
        return logits

    def decode(self, tokens: Tensor, positions: Tensor, longest: int) -> Tensor:
        """See `Forward.decode`; each cache knows its own length."""
        logits = torch.empty(len(tokens), self._vocabulary, dtype=self._model.dtype, device=self._device)
        for cohort in self._cohorts:
            ids = tokens.index_select(0, cohort.index).unsqueeze(1)
            out = self._model(ids, past_key_values=cohort.cache, use_cache=True)
            cohort.cache = out.past_key_values
            logits.index_copy_(0, cohort.index, out.logits[:, -1])
        return logits

    def shrink(self, rows: int, target: Sequence[int], source: Sequence[int], longest: int) -> None:
        """See `Forward.shrink`; rows only change their names."""
        moved = dict(zip(source, target, strict=True))
        cohorts, self._cohorts = self._cohorts, []
        for cohort in cohorts:
            kept = [i for i, row in enumerate(cohort.rows) if row in moved or (row < rows and row not in target)]
            if len(kept) < len(cohort.rows) and kept:
                cohort.cache.batch_select_indices(self._indices(kept))
            if kept:
                self._add([moved.get(cohort.rows[i], cohort.rows[i]) for i in kept], cohort.cache)

    def _add(self, rows: list[int], cache: Any) -> None:
        self._cohorts.append(_Cohort(rows, self._indices(rows), cache))

    def _indices(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows, device=self._device)
