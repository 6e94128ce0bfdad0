"""The key and value cache: one preallocated tensor, one row a sequence, each row with its own length."""

import torch
from torch import Tensor


class SlotCache:
    """Cache [layers, rows, kv_heads, 2, max_length, head_dim]; columns beyond a row's length hold finite leftovers.

    Key and value of a head lie together, so that a token is stored by one operation a layer and rows and heads flatten
    into one batch dimension without a copy.
    """

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
        self._data = torch.zeros(layers, rows, kv_heads, 2, max_length, head_dim, dtype=dtype, device=device)
        self._by_column = self._data.permute(0, 1, 4, 2, 3, 5).unbind(0)
        self._rows = torch.arange(rows, device=device)

    def append(self, layer: int, positions: Tensor, kv: Tensor) -> None:
        """Store one column in each of the first n rows: positions [n]; kv [n, kv_heads, 2, head_dim]."""
        self._by_column[layer].index_put_((self._rows[: positions.shape[0]], positions), kv)

    def fill(self, layer: int, first: int, kv: Tensor) -> None:
        """Store the columns [0, length) of rows `first`...: kv [n, length, kv_heads, 2, head_dim]."""
        self._by_column[layer][first : first + kv.shape[0], : kv.shape[1]] = kv

    def views(self, rows: int, columns: int) -> list[tuple[Tensor, ...]]:
        """Keys and values, by layer, of the first rows and columns: each [rows * kv_heads, columns, head_dim]."""
        part = self._data[:, :rows].flatten(1, 2)[:, :, :, :columns]
        return [layer.unbind(1) for layer in part.unbind(0)]

    def move(self, target: Tensor, source: Tensor, length: int) -> None:
        """Copy the first `length` columns of row `source[i]` into row `target[i]`, in all layers."""
        columns = self._data[:, :, :, :, :length]
        columns.index_copy_(1, target, columns.index_select(1, source))
