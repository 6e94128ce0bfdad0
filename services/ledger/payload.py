"""A stored trajectory: one blob a sample, cut from the columns it came in and joined again for the learner.

u32 tokens | u32 text bytes | tokens <i4 | mask |u1 | logprobs <f4 | versions <i4 | text UTF-8
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from midflight.messages.samples import Trajectories, TrajectoryPart
from midflight.messages.tensors import Column

HEAD: Final = struct.Struct("<II")
COLUMNS: Final = (("tokens", "<i4", 4), ("mask", "|u1", 1), ("logprobs", "<f4", 4), ("versions", "<i4", 4))


def cut(message: Trajectories, views: Mapping[str, "memoryview[Any]"]) -> Iterator[tuple[TrajectoryPart, bytes]]:
    """The blobs of one `trajectories` message. Raises ValueError when a column is shorter than its parts say."""
    raw = {name: views[name].cast("B") for name in ("tokens", "mask", "logprobs", "versions", "texts")}
    tokens = sum(part.tokens for part in message.parts)
    texts = sum(part.text_bytes for part in message.parts)
    if len(raw["texts"]) != texts or any(len(raw[name]) != tokens * size for name, _, size in COLUMNS):
        raise ValueError("columns do not have the length that the parts add up to")
    at, text_at = 0, 0
    for part in message.parts:
        end, text_end = at + part.tokens, text_at + part.text_bytes
        pieces = [raw[name][at * size : end * size] for name, _, size in COLUMNS]
        yield part, b"".join([HEAD.pack(part.tokens, part.text_bytes), *pieces, raw["texts"][text_at:text_end]])
        at, text_at = end, text_end


def text_of(blob: bytes) -> bytes:
    """The completion's text, UTF-8."""
    return blob[len(blob) - HEAD.unpack_from(blob)[1] :]


def tokens_of(blob: bytes) -> int:
    """Tokens of prompt and completion."""
    tokens: int = HEAD.unpack_from(blob)[0]
    return tokens


def join(blobs: Sequence[bytes]) -> list[Column]:
    """The four columns of many blobs, one after another."""
    out: list[Column] = []
    for index, (name, dtype, size) in enumerate(COLUMNS):
        skip = HEAD.size
        pieces = []
        for blob in blobs:
            tokens = HEAD.unpack_from(blob)[0]
            start = skip + tokens * sum(width for _, _, width in COLUMNS[:index])
            pieces.append(memoryview(blob)[start : start + tokens * size])
        out.append((name, dtype, b"".join(pieces)))
    return out
