"""What a decoder layer keeps for its backward pass and needs at work, seen by running it on tensors without memory.

The network itself is run, forward and backward, on PyTorch's fake tensors, which have shapes and no data: whatever the
model's code keeps is counted, for any architecture and size, and nothing is allocated. Two layers stand for all.
"""

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.network.attention import ATTENTION, Documents, register
from midflight.services.learner.network.lora import adapt
from midflight.services.learner.network.policy import recompute_activations
from midflight.services.learner.training_config import LoraConfig
from midflight.services.model.outline import bare_model

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
        out = func(*args, **(kwargs or {}))
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
) -> LayerBytes:
    """Run two layers of a configuration on so many documents of one length (positions).

    dtype: of the weights. bf16: autocast, as the policy's. recompute: `gradient_checkpointing`. flash: attention keeps
    what a variable-length CUDA kernel does, not what this learner does on a CPU. slices: ranks over which tensor
    parallelism cuts a layer; one of them is run. lora: adapters, which train in place of the rest.
    """
    spans = _spans(documents, length)
    with FakeTensorMode():
        lm, ids = _two_layers(sliced(config, slices), dtype, flash, lora), _ids(documents, length)
        if recompute:
            recompute_activations(lm)
        trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        with LiveBytes([*_weights(lm), *(p.grad for p in trained if p.grad is not None)]) as live:
            between: list[int] = []
            for layer in lm.base_model.layers:
                layer.register_forward_hook(_noted(between, live))
            hidden = _passed(lm, ids, spans, bf16)
            forward = live.now
            torch.autograd.backward(hidden, torch.zeros_like(hidden))
    kept = between[1] - between[0]
    return LayerBytes(documents * length, kept, forward - 2 * kept, live.peak - forward)


def forward_bytes(
    config: Any, dtype: torch.dtype, documents: int, length: int, *, bf16: bool, flash: bool, slices: int = 1
) -> int:
    """At most, in a pass without gradients through a network that is not trained; its weights are not counted."""
    spans = _spans(documents, length)
    with FakeTensorMode(), torch.no_grad():
        lm, ids = _two_layers(sliced(config, slices), dtype, flash), _ids(documents, length)
        with LiveBytes(_weights(lm)) as live:
            _passed(lm, ids, spans, bf16)
    return int(live.peak)


def most(found: Iterable[LayerBytes]) -> LayerBytes:
    """At least as much as each of them."""
    every = list(found)
    return LayerBytes(*(max(getattr(one, name) for one in every) for name in LayerBytes.__slots__))


def _two_layers(config: Any, dtype: torch.dtype, flash: bool, lora: LoraConfig | None = None) -> Any:
    """On the CPU, in the fake mode that is on."""
    register()
    AttentionInterface.register(FLASH, flash_shaped)
    with torch.device("meta"):
        lm = bare_model(config, dtype, layers=2)
        if lora:
            adapt(lm, lora, seed=0)  # moves modules about, which fake tensors do not bear
    made: dict[Tensor, Tensor] = {}
    for module in lm.modules():
        for kept in (module._parameters, module._buffers):
            for name, tensor in kept.items():
                if tensor is not None:
                    kept[name] = made.setdefault(tensor, _here(tensor))
    lm.set_attn_implementation(FLASH if flash else ATTENTION)
    return lm


def _here(tensor: Tensor) -> Tensor:
    """Another one of that shape on the CPU."""
    made = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def _weights(lm: Any) -> list[Tensor]:
    return [*lm.parameters(), *lm.buffers()]


def _spans(documents: int, length: int) -> Documents:
    return Documents.from_cu_seqlens(torch.arange(0, documents * length + 1, length, dtype=torch.int32))


def _ids(documents: int, length: int) -> Tensor:
    return torch.zeros(1, documents * length, dtype=torch.long)


def _passed(lm: Any, ids: Tensor, spans: Documents, bf16: bool) -> Tensor:
    """The last layer's hidden states."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16, cache_enabled=False):
        hidden: Tensor = lm.base_model(input_ids=ids, position_ids=ids, use_cache=False, documents=spans)[0]
    return hidden


def sliced(config: Any, slices: int) -> Any:
    """The configuration of what a rank computes: its share of the heads and of the inner width, all of the rest.

    Raises UserMistake for a number that does not divide the heads, the inner width or the vocabulary.
    """
    if slices == 1:
        return config
    heads = config.num_attention_heads
    pairs = getattr(config, "num_key_value_heads", None) or heads
    if pairs % slices or heads % slices:
        raise UserMistake(f"tp_size {slices} does not divide the model's {heads} heads and {pairs} key-value heads")
    tokens, inner = config.vocab_size, config.intermediate_size
    if tokens % slices or inner % slices:
        raise UserMistake(f"tp_size {slices} does not divide the model's {tokens} tokens and inner width {inner}")
    config = copy.deepcopy(config)
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    config.num_attention_heads, config.num_key_value_heads = heads // slices, pairs // slices
    config.intermediate_size = inner // slices
    return config


def _noted(values: list[int], live: LiveBytes) -> Callable[..., None]:
    def note(*_: object) -> None:
        values.append(live.now)

    return note


class _Flash(torch.autograd.Function):
    """Keeps query, key, value, output and one float32 a head and position, as flash attention does."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def flash_shaped(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **_: object
) -> tuple[Tensor, None]:
    """As `packed_attention`: query [1, H, T, D], key and value [1, Hk, T, D] -> [1, T, H, D]; shapes only."""
    out: Tensor = _Flash.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2), None
