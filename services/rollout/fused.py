"""The fast path: a functional forward of the Llama family over a slot cache.

It runs about twenty operations a layer for the whole batch, where the model's own forward runs about sixty; for small
models that number, and not the arithmetic, is the cost.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .fused_weights import FusedWeights, Geometry, Layer
from .kernels import MIN_COLUMNS, add_linear, attend, linear, normalise, rotate_
from .kv import SlotCache

_FORBIDDEN = 1e30


class FusedForward:
    """`Forward` for models that `fusable` accepts; see there for the methods' contracts."""

    def __init__(self, model: Any, rows: int, max_length: int, device: torch.device, prefill_tokens: int) -> None:
        self._geometry = g = Geometry.of(model.config)
        self._weights = FusedWeights(g, model.state_dict(), model.dtype, device)
        self._cache = SlotCache(g.layers, rows, g.kv_heads, max_length, g.head_dim, model.dtype, device)
        self._prefill_tokens = prefill_tokens
        self._device = device
        self._columns = torch.arange(max_length, dtype=torch.float32, device=device)
        self._rotation = _rotation(model, max_length).to(device)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Forward.load`."""
        self._weights.load(state)

    def prefill(self, sequences: Sequence[Sequence[int]], source: Sequence[int], first: int) -> Tensor:
        """See `Forward.prefill`. Sequences are padded on the right; causality keeps the padding out."""
        logits = []
        for chunk in _chunks(sequences, self._prefill_tokens):
            begin, end = bisect_left(source, chunk.start), bisect_left(source, chunk.stop)
            origin = torch.tensor(source[begin:end], device=self._device) - chunk.start
            logits.append(self._prefill_chunk(sequences[chunk.start : chunk.stop], origin, first + begin))
        return torch.cat(logits)

    def decode(self, tokens: Tensor, positions: Tensor, longest: int) -> Tensor:
        """See `Forward.decode`."""
        w, rows = self._weights, tokens.shape[0]
        columns = min(max(longest, MIN_COLUMNS), len(self._columns))
        x = w.embedding.index_select(0, tokens)
        rotation = self._rotation.index_select(0, positions)[:, None, None]
        mask = self._mask(positions, columns)
        cached = self._cache.views(rows, columns)
        for index, layer in enumerate(w.layers):
            q, kv = self._qkv(layer, x, rotation)
            self._cache.append(index, positions, kv)
            keys, values = cached[index]
            x = self._mlp(layer, add_linear(x, attend(q, keys, values, mask), layer.out))
        return self._logits(x)

    def shrink(self, rows: int, target: Sequence[int], source: Sequence[int], longest: int) -> None:
        """See `Forward.shrink`; dropping a row costs nothing."""
        if target:
            device = self._device
            self._cache.move(torch.tensor(target, device=device), torch.tensor(source, device=device), longest)

    def _prefill_chunk(self, sequences: Sequence[Sequence[int]], origin: Tensor, first: int) -> Tensor:
        """Cache number `origin[i]` of `sequences` in row `first + i`, return the logits after it."""
        w, g = self._weights, self._geometry
        count = len(sequences)
        length = min(-(-max(map(len, sequences)) // MIN_COLUMNS) * MIN_COLUMNS, len(self._columns))
        ids = torch.tensor([[*s, *[0] * (length - len(s))] for s in sequences], device=self._device)
        ends = torch.tensor([len(s) - 1 for s in sequences], device=self._device)
        last = torch.arange(count, device=self._device) * length + ends
        x = w.embedding.index_select(0, ids.view(-1))
        rotation = self._rotation[:length].repeat(count, 1)[:, None, None]
        for index, layer in enumerate(w.layers):
            q, kv = self._qkv(layer, x, rotation)
            kv = kv.view(count, length, g.kv_heads, 2, g.head_dim)
            self._cache.fill(index, first, kv.index_select(0, origin))
            k, v = kv.transpose(1, 2).unbind(3)
            if index + 1 < g.layers:
                q = q.reshape(count, length, g.heads, g.head_dim).transpose(1, 2)
                mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=g.heads != g.kv_heads)
                mixed = mixed.transpose(1, 2).reshape(count * length, -1)
            else:  # beyond its keys and values, the last layer matters at the last position only
                x, q = x.index_select(0, last), q.index_select(0, last)
                keys, values = (each.reshape(-1, length, g.head_dim) for each in (k, v))
                mixed = attend(q, keys, values, self._mask(ends, length))
            x = self._mlp(layer, add_linear(x, mixed, layer.out))
        return self._logits(x).index_select(0, origin)

    def _logits(self, x: Tensor) -> Tensor:
        return linear(normalise(x, self._weights.final_gain, self._geometry.epsilon), self._weights.head)

    def _qkv(self, layer: Layer, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """x [t, hidden], rotation [t, 1, 1, d / 2] -> rotated q [t, kv_heads, group, d]; k, v [t, kv_heads, 2, d]."""
        g = self._geometry
        joint = linear(normalise(x, layer.input_gain, g.epsilon), layer.qkv, layer.qkv_bias)
        joint = joint.view(x.shape[0], g.kv_heads, -1, g.head_dim)
        rotate_(joint[:, :, :-1], layer.qk_gain, g.epsilon, rotation)
        return joint[:, :, :-2], joint[:, :, -2:]

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        gate, up = linear(normalise(x, layer.mlp_gain, self._geometry.epsilon), layer.gate_up).chunk(2, dim=1)
        return add_linear(x, F.silu(gate).mul_(up), layer.down)

    def _mask(self, positions: Tensor, columns: int) -> Tensor:
        """Additive mask [n, kv_heads, columns]: 0 up to each row's position, below -1e30 beyond."""
        every = positions.float().unsqueeze(1).expand(-1, self._geometry.kv_heads).unsqueeze(2)
        return (every - self._columns[:columns]).clamp_(max=0).mul_(_FORBIDDEN).to(self._weights.dtype)


def _rotation(model: Any, max_length: int) -> Tensor:
    """e^{i theta} of each rotary pair at positions [0, max_length): complex64 [max_length, head_dim / 2]."""
    rotary = model.get_decoder().rotary_emb
    device = rotary.inv_freq.device
    cos, sin = rotary(torch.zeros(1, 1, device=device), torch.arange(max_length, device=device).unsqueeze(0))
    half = cos.shape[2] // 2
    return torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float())


def _chunks(sequences: Sequence[Sequence[int]], budget: int) -> list[range]:
    """Cut into consecutive runs of at most `budget` tokens after padding, but at least one sequence each."""
    chunks, start, longest = [], 0, 0
    for index, sequence in enumerate(sequences):
        longest = max(longest, len(sequence))
        if index > start and longest * (index + 1 - start) > budget:
            chunks.append(range(start, index))
            start, longest = index, len(sequence)
    return [*chunks, range(start, len(sequences))]
