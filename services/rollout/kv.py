"""The key and value cache: one preallocated tensor, one row a sequence, each row with its own length."""

import torch
from torch import Tensor


class SlotCache:
    """Cache [layers, 2, rows, kv_heads, max_length, head_dim]; columns beyond a row's length hold finite leftovers."""

    def __init__(
        self,
        layers: int,
        rows: int,
        kv_heads: int,
        max_length: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # Zeros, not empty: a masked column still enters the sum as 0 * value, and 0 * NaN is NaN.
        self._data = torch.zeros(layers, 2, rows, kv_heads, max_length, head_dim, dtype=dtype, device=device)
        self._by_column = [layer.transpose(2, 3).unbind(0) for layer in self._data.unbind(0)]
        self._rows = torch.arange(rows, device=device)

    def append(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store one column in each of the first n rows: positions [n]; keys, values [n, kv_heads, head_dim]."""
        where = (self._rows[: positions.shape[0]], positions)
        cached_keys, cached_values = self._by_column[layer]
        cached_keys.index_put_(where, keys)
        cached_values.index_put_(where, values)

    def fill(self, layer: int, rows: Tensor, source: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store sequence `source[i]` of keys, values [sequences, kv_heads, length, head_dim] in row `rows[i]`."""
        length = keys.shape[2]
        for cached, new in zip(self._data[layer].unbind(0), (keys, values), strict=True):
            cached[:, :, :length].index_copy_(0, rows, new.index_select(0, source))

    def views(self, rows: int, columns: int) -> list[tuple[Tensor, ...]]:
        """Keys and values, by layer, of the first rows and columns: each [rows * kv_heads, columns, head_dim]."""
        part = self._data[:, :, :rows].flatten(2, 3)[:, :, :, :columns]
        return [layer.unbind(0) for layer in part.unbind(0)]

    def move(self, target: Tensor, source: Tensor, length: int) -> None:
        """Copy the first `length` columns of row `source[i]` into row `target[i]`, in all layers."""
        columns = self._data[:, :, :, :, :length]
        columns.index_copy_(2, target, columns.index_select(2, source))
