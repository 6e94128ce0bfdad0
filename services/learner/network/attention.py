"""Causal attention over packed documents, registered with transformers under one name.

The name has no mask function, so transformers builds no mask; documents are told apart by `Documents`, which
travels as a keyword through the model to `packed_attention`. Passing any attention mask would silently disable
packed handling elsewhere in transformers, so it is refused. Where the keyword is a `Ring`, the positions are those of
one rank of a sequence, and what it attends to comes from the others as well.

On a CPU, consecutive documents of similar length form a bucket; a bucket is padded inside attention only and
runs as one batched product. Measured, forward and backward of one layer, one thread: 128 documents of 18 to 28
tokens take 3.1 ms this way and 5.4 ms in a loop of one call per document (`benchmarks/learner.py attention`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from midflight.services.learner.group.ring import Ring, ring_attention
from midflight.services.learner.packs.sharing import Shared

from .attention_cuda import varlen_attention

ATTENTION = "midflight_packed"
"""Name under which `packed_attention` is registered."""

MIN_FILL = 0.6
"""A bucket ends where a document is shorter than this share of its longest: bounds padding to 40 %."""

PAD_LIMIT = 64
"""Documents longer than this (tokens) share a bucket with equal lengths only: padding would cost more than a call."""

PRODUCT_LIMIT = {torch.float32: 64, torch.bfloat16: 512, torch.float16: 512}
"""Longest bucket (tokens) for the explicit product; above it the fused kernel is faster (measured, 1 thread:
fp32 even at 64, bf16 even at 512 to 768 for head sizes 16, 32 and 64)."""

UNSUPPORTED = ("sliding_window", "softcap", "s_aux")
"""Attention variants that models ask for by keyword and that this entry does not compute."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Consecutive documents padded together inside attention.

    tokens = sum of lengths, count = S, longest = L. `gather` int64 [S * L] picks, within the bucket's tokens,
    the padded layout (padding repeats a document's last token); `keep` int64 [tokens] picks the real ones
    back. Both are None when all lengths are equal.
    """

    tokens: int
    count: int
    longest: int
    gather: Tensor | None
    keep: Tensor | None


@dataclass(frozen=True, slots=True)
class Documents:
    """Where documents start and end in a pack: cu_seqlens int32 [S + 1], the longest length, the buckets."""

    cu_seqlens: Tensor
    longest: int
    buckets: tuple[Bucket, ...]
    shared: Shared | None = None

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: Tensor, shared: Shared | None = None) -> "Documents":
        """Group consecutive documents into buckets; packs are sorted by length, so few are needed."""
        lengths: list[int] = cu_seqlens.diff().tolist()
        groups: list[list[int]] = []
        low, high = 0, 1
        for n in lengths:
            low, high = min(low, n), max(high, n)
            if low < (MIN_FILL if high <= PAD_LIMIT else 1) * high:
                groups.append([])
                low = high = n
            groups[-1].append(n)
        return cls(cu_seqlens, max(lengths), tuple(_bucket(g, cu_seqlens.device) for g in groups), shared)


def _bucket(lengths: list[int], device: torch.device) -> Bucket:
    count, longest, tokens = len(lengths), max(lengths), sum(lengths)
    if count * longest == tokens:
        return Bucket(tokens, count, longest, None, None)
    size = torch.tensor(lengths, device=device)[:, None]
    start = size.cumsum(0) - size
    slot = torch.arange(longest, device=device)[None]
    gather = start + torch.minimum(slot, size - 1)
    keep = (slot < size).flatten().nonzero().squeeze(1)
    return Bucket(tokens, count, longest, gather.flatten(), keep)


def register() -> None:
    """Make `ATTENTION` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(ATTENTION, packed_attention)


def must_compute(mask: Tensor | None, dropout: float, options: Mapping[str, object]) -> None:
    """Raises ValueError for what a model asks of `packed_attention` that it does not compute."""
    if mask is not None:
        raise ValueError("packed attention got an attention_mask: pass documents by cu_seqlens only")
    asked = [name for name in UNSUPPORTED if options.get(name) is not None]
    if dropout or asked:
        raise ValueError(f"packed attention does not compute {asked or 'attention dropout'}; change the model")


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float,
    documents: Documents | Ring,
    dropout: float = 0.0,
    **options: object,
) -> tuple[Tensor, None]:
    """Causal attention inside each document. query [1, H, T, D], key and value [1, Hk, T, D] -> [1, T, H, D].

    With shared prompts T is the number of kept positions, with a ring that of this rank's own.

    Query head h reads key head h // (H / Hk). Raises ValueError for a mask, dropout or an unsupported variant.
    """
    must_compute(attention_mask, dropout, options)
    if torch.is_autocast_enabled(query.device.type):
        # Norms and rotary embeddings have widened queries and keys; the fast kernels are those for narrow ones.
        narrow = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(narrow), key.to(narrow), value.to(narrow)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if isinstance(documents, Ring):
        return ring_attention(q, k, v, documents, scaling)[None], None
    if documents.shared is None:
        return _whole(q, k, v, documents, scaling)[None], None
    q, k, v = (x.index_select(0, documents.shared.expand) for x in (q, k, v))
    return _whole(q, k, v, documents, scaling).index_select(0, documents.shared.keep)[None], None


def _whole(q: Tensor, k: Tensor, v: Tensor, documents: Documents, scaling: float) -> Tensor:
    """Over all positions of the pack: q [T, H, D], k and v [T, Hk, D] -> [T, H, D]."""
    if q.is_cuda:
        fused = varlen_attention(q, k, v, documents.cu_seqlens, documents.longest, scaling)
        if fused is not None:
            return fused
    sizes = [b.tokens for b in documents.buckets]
    parts = zip(documents.buckets, *(torch.split(x, sizes) for x in (q, k, v)), strict=True)
    outputs = [_bucket_attention(b, x, y, z, scaling) for b, x, y, z in parts]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _bucket_attention(bucket: Bucket, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    """q [tokens, H, D], k and v [tokens, Hk, D] -> [tokens, H, D]."""

    def padded(x: Tensor) -> Tensor:
        x = x if bucket.gather is None else x.index_select(0, bucket.gather)
        return x.view(bucket.count, bucket.longest, x.shape[1], x.shape[2]).transpose(1, 2)

    q, k, v = padded(q), padded(k), padded(v)
    if bucket.longest <= PRODUCT_LIMIT.get(q.dtype, 64):
        out = _product_attention(q, k, v, scaling)
    else:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    flat = out.transpose(1, 2).flatten(0, 1)
    return flat if bucket.keep is None else flat.index_select(0, bucket.keep)


def _product_attention(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    """Explicit causal softmax(q k^T) v; q [S, H, L, D], k [S, Hk, L, D], v [S, Hk, L, E] -> [S, H, L, E].

    Query heads that share a key head are stacked along the rows, so keys are never repeated.
    """
    count, heads, length, width = q.shape
    shared = heads // k.shape[1]
    rows = q.reshape(-1, shared * length, width)
    future = q.new_full((length, length), float("-inf")).triu(1).repeat(shared, 1)
    keys, values = k.reshape(-1, length, width), v.reshape(-1, length, v.shape[3])
    with torch.autocast(q.device.type, enabled=False):  # which would keep what softmax reads and returns in float32
        scores = torch.baddbmm(future, rows, keys.transpose(1, 2), alpha=scaling)
        return torch.bmm(scores.softmax(-1), values).view(count, heads, length, v.shape[3])
