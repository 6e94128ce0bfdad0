"""Tensors as a safetensors file, streamed: no second copy in memory, so it can be hashed while written.

Layout (safetensors 0.x): header length u64 little-endian, JSON header padded with spaces to 8 bytes, then the
tensors' bytes in header order. Read back by the library itself. Where a tensor is a part of a larger one, the metadata
say of which: key SLICES, JSON {name: [shape of the whole, offset]}.
"""

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .durable import Chunk
from .slices import Slice

SLICES = "slices"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def tensor_chunks(tensors: Mapping[str, Tensor], slices: Mapping[str, Slice] | None = None) -> Iterator[Chunk]:
    """The file, piece by piece: the header, then one piece per tensor in name order.

    slices: of those that are parts.
    """
    header: dict[str, object] = {}
    if slices:
        places = {name: [part.shape, part.offset] for name, part in sorted(slices.items())}
        header["__metadata__"] = {SLICES: json.dumps(places, separators=(",", ":"))}
    offset = 0
    names = sorted(tensors)
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        if tensors[name].numel():
            flat = tensors[name].detach().cpu().contiguous().flatten()
            yield flat.view(torch.uint8).numpy().data
