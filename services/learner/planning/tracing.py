"""What a decoder layer keeps for its backward pass and needs at work, seen by running it on tensors without memory.

The network itself is run, forward and backward, on PyTorch's fake tensors, which have shapes and no data: whatever the
model's code keeps is counted, for any architecture and size, and nothing is allocated. Two layers stand for all of
their kind.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface

from midflight.services.learner.network.attention import ATTENTION, Documents, must_compute, register
from midflight.services.learner.network.policy import recompute_activations
from midflight.services.learner.training_config import LoraConfig
from midflight.services.model.outline import ALIKE, Pair
from midflight.services.model.stack import decoder_layers

from .pair import fakes, two_layers, without_memory

FLASH = "midflight_planned"
"""Name of attention of that kind; one with "flash" in it would make transformers look for a package."""


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """Bytes of one pass over a pack of `tokens` positions; weights and gradients themselves are not counted.

    kept: by each layer from its forward to its backward pass. rest: by what is not a layer. work: beyond these, at
    most, while one layer is at its backward pass (which begins with its forward pass where it is recomputed).
    """

    tokens: int
    kept: int
    rest: int
    work: int


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of storages that are alive, `now` and at most (`peak`); not of those of `known` tensors."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]
        self._seen: dict[int, Any] = {id(storage): storage for storage in self._known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and look at what it returns."""
        grouped = func is torch.ops.aten._grouped_mm.default
        out = grouped_shape(*args, **(kwargs or {})) if grouped else func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def gone(_: object) -> None:
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def layer_bytes(
    config: Any,
    dtype: torch.dtype,
    documents: int,
    length: int,
    *,
    bf16: bool,
    recompute: bool,
    flash: bool,
    slices: int = 1,
    lora: LoraConfig | None = None,
    pair: Pair = ALIKE,
) -> LayerBytes:
    """Run two layers of a configuration on so many documents of one length (positions).

    dtype: of the weights. bf16: autocast, as the policy's. recompute: `gradient_checkpointing`. flash: attention keeps
    what a variable-length CUDA kernel does, not what this learner does on a CPU. slices, lora, pair: as `two_layers`.
    Raises UserMistake, naming the model and the reason, where it cannot be run.
    """
    spans, lm = _spans(documents, length), two_layers(config, dtype, pair, slices, lora)
    with fakes(lm):
        ids = _ready(lm, documents, length, flash)
        if recompute:
            recompute_activations(lm)
        trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        with LiveBytes([*_weights(lm), *(p.grad for p in trained if p.grad is not None)]) as live:
            between: list[int] = []
            for layer in decoder_layers(lm):
                layer.register_forward_hook(_noted(between, live))
            hidden = _passed(lm, ids, spans, bf16)
            forward = live.now
            torch.autograd.backward(hidden, torch.zeros_like(hidden))
    kept = between[1] - between[0]
    return LayerBytes(documents * length, kept, forward - 2 * kept, live.peak - forward)


def forward_bytes(
    config: Any,
    dtype: torch.dtype,
    documents: int,
    length: int,
    *,
    bf16: bool,
    flash: bool,
    slices: int = 1,
    pair: Pair = ALIKE,
) -> int:
    """At most, in a pass without gradients through a network that is not trained; its weights are not counted.

    Raises UserMistake as `layer_bytes` does.
    """
    spans, lm = _spans(documents, length), two_layers(config, dtype, pair, slices)
    with fakes(lm), torch.no_grad():
        ids = _ready(lm, documents, length, flash)
        with LiveBytes(_weights(lm)) as live:
            _passed(lm, ids, spans, bf16)
    return int(live.peak)


def mean(found: Iterable[tuple[int, LayerBytes]]) -> LayerBytes:
    """Of a stack of several kinds of layers, so many of each: what one keeps on average, and at most of the rest."""
    every = list(found)
    kept = sum(count * one.kept for count, one in every) / sum(count for count, _ in every)
    return replace(most(one for _, one in every), kept=ceil(kept))


def most(found: Iterable[LayerBytes]) -> LayerBytes:
    """At least as much as each of them."""
    every = list(found)
    return LayerBytes(*(max(getattr(one, name) for one in every) for name in LayerBytes.__slots__))


def _weights(lm: Any) -> list[Tensor]:
    return [*lm.parameters(), *lm.buffers()]


def _spans(documents: int, length: int) -> Documents:
    return Documents.from_cu_seqlens(torch.arange(0, documents * length + 1, length, dtype=torch.int32))


def _ready(lm: Any, documents: int, length: int, flash: bool) -> Tensor:
    """In the fake mode that is on -> tokens to read."""
    register()
    AttentionInterface.register(FLASH, flash_shaped)
    without_memory(lm).set_attn_implementation(FLASH if flash else ATTENTION)
    return torch.zeros(1, documents * length, dtype=torch.long)


def _passed(lm: Any, ids: Tensor, spans: Documents, bf16: bool) -> Tensor:
    """The last layer's hidden states."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16, cache_enabled=False):
        hidden: Tensor = lm.base_model(input_ids=ids, position_ids=ids, use_cache=False, documents=spans)[0]
    return hidden


def _noted(values: list[int], live: LiveBytes) -> Callable[..., None]:
    def note(*_: object) -> None:
        values.append(live.now)

    return note


def grouped_shape(a: Tensor, b: Tensor, offs: Tensor, bias: Tensor | None = None, dtype: Any = None) -> Tensor:
    """Of `torch.nn.functional.grouped_mm`, by which experts compute: [T, K] x [E, K, N] -> [T, N] and, for gradients of
    their weights, [K, T] x [T, N] -> [E, K, N]. PyTorch's own fake of it knows bfloat16 alone; what runs, any dtype."""
    shape = (a.shape[0], b.shape[2]) if b.dim() == 3 else (offs.shape[0], a.shape[0], b.shape[1])
    return a.new_empty(shape, dtype=dtype)


class _Flash(torch.autograd.Function):
    """Keeps query, key, value, output and one float32 a head and position, as flash attention does."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def flash_shaped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    **options: object,
) -> tuple[Tensor, None]:
    """As `packed_attention`: query [1, H, T, D], key and value [1, Hk, T, D] -> [1, T, H, D]; shapes only, and the same
    refusals."""
    must_compute(mask, dropout, options)
    out: Tensor = _Flash.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2), None
