"""Raw arrays behind a message body: descriptors out of bytes-likes, bounds-checked read-only views back.

No numpy here: a kernel or a command line never pays for it. `torch.frombuffer` or `memoryview.cast` take the views.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

from .base import Tensor

ITEM_BYTES = {"<i4": 4, "<i8": 8, "<f4": 4, "<f2": 2, "bf16": 2, "|u1": 1, "|b1": 1}
CAST: dict[str, Literal["i", "q", "f", "B", "?"]] = {"<i4": "i", "<i8": "q", "<f4": "f", "|u1": "B", "|b1": "?"}
Column = tuple[str, str, bytes]
"""(name, dtype, data): one flat column of a bulk message."""


def describe(columns: Iterable[Column]) -> tuple[list[dict[str, object]], list[bytes]]:
    """Flat columns -> (descriptors, frames), one frame a column.

    Raises:
        ValueError: a dtype outside the closed list, or a length that is no multiple of the item size.
    """
    descriptors: list[dict[str, object]] = []
    frames: list[bytes] = []
    for frame, (name, dtype, data) in enumerate(columns):
        size = ITEM_BYTES.get(dtype)
        if size is None:
            raise ValueError(f"tensor {name!r}: dtype {dtype!r} is not one of {', '.join(ITEM_BYTES)}")
        if len(data) % size:
            raise ValueError(f"tensor {name!r}: {len(data)} bytes are not a multiple of {size} ({dtype})")
        descriptors.append({"name": name, "dtype": dtype, "shape": [len(data) // size], "frame": frame, "offset": 0})
        frames.append(data)
    return descriptors, frames


def check(tensors: Sequence[Tensor], frames: Sequence[bytes]) -> str | None:
    """Why the descriptors do not fit the frames, or None when every array lies inside its frame."""
    for tensor in tensors:
        size = ITEM_BYTES.get(tensor.dtype)
        if size is None:
            return "dtype"
        if tensor.frame >= len(frames):
            return "frame index"
        if tensor.offset + math.prod(tensor.shape) * size > len(frames[tensor.frame]):
            return "array larger than its frame"
    return None


def views(tensors: Sequence[Tensor], frames: Sequence[bytes]) -> dict[str, "memoryview[Any]"]:
    """name -> read-only memoryview, cast to the item type where Python has one (bf16 and f2 stay bytes)."""
    out: dict[str, memoryview[Any]] = {}
    for tensor in tensors:
        stop = tensor.offset + math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
        view = memoryview(frames[tensor.frame])[tensor.offset : stop].toreadonly()
        code = CAST.get(tensor.dtype)
        out[tensor.name] = cast("memoryview[Any]", view.cast(code) if code else view)
    return out
