"""A stored trajectory: one blob a sample, cut from the columns it came in and joined again for the learner.

u32 tokens | u32 tail bytes | u32 segments | u32 state bytes | u32 how its last turn ended |
tokens <i4 | mask |u1 | logprobs <f4 | versions <i4 | tokens of each segment <u4, none for a single one | state | tail

The tail is what was said after the prompt row's messages: JSON messages with commas between them, so that a turn is
appended without parsing. The state is the episode's, a JSON object.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from midflight.messages.samples import Trajectories, TrajectoryPart
from midflight.messages.tensors import Column

HEAD: Final = struct.Struct("<IIIII")
COLUMNS: Final = (("tokens", "<i4", 4), ("mask", "|u1", 1), ("logprobs", "<f4", 4), ("versions", "<i4", 4))
WIDTH: Final = sum(size for _, _, size in COLUMNS)
ENDS: Final = ("", "stop", "length", "context", "context")
"""How a turn ended, by the number that is stored; 0: it has not, or nobody said how."""
STOPPED: Final = 1
NO_ROOM: Final = 4
"""By the context, before the model could say a word."""


class Head(NamedTuple):
    """The counts that a blob begins with."""

    tokens: int
    tail: int
    segments: int
    state: int
    end: int

    @property
    def positions(self) -> int:
        """Positions it takes in a learner's pack: its tokens but the last of each segment."""
        return self.tokens - max(1, self.segments)


def cut(message: Trajectories, views: Mapping[str, "memoryview[Any]"]) -> Iterator[tuple[TrajectoryPart, bytes]]:
    """What is new in each part, as a blob. Raises ValueError when a column is shorter than its parts say."""
    raw = {name: views[name].cast("B") for name in ("tokens", "mask", "logprobs", "versions", "texts")}
    tokens = sum(part.tokens for part in message.parts)
    texts = sum(part.text_bytes for part in message.parts)
    if len(raw["texts"]) != texts or any(len(raw[name]) != tokens * size for name, _, size in COLUMNS):
        raise ValueError("columns do not have the length that the parts add up to")
    at, text_at = 0, 0
    for part in message.parts:
        end, text_end = at + part.tokens, text_at + part.text_bytes
        pieces = [raw[name][at * size : end * size] for name, _, size in COLUMNS]
        head = HEAD.pack(part.tokens, part.text_bytes, 0, 0, _end(part))
        yield part, b"".join([head, *pieces, raw["texts"][text_at:text_end]])
        at, text_at = end, text_end


def extended(blob: bytes, new: bytes, *, apart: bool) -> bytes:
    """A trajectory and its next turn; `apart`: as a segment of its own."""
    old, more = head_of(blob), head_of(new)
    segments = [*(segments_of(blob) or [old.tokens])]
    if apart:
        segments.append(more.tokens)
    else:
        segments[-1] += more.tokens
    pieces = [piece for pair in zip(_columns(blob), _columns(new), strict=True) for piece in pair]
    return _blob(pieces, segments, _state(blob), _appended(_tail(blob), _tail(new)), end=more.end)


def answered(blob: bytes, messages: bytes, state: bytes) -> bytes:
    """A trajectory to which the tools have answered: `messages` with commas between them, and their state."""
    return _blob(_columns(blob), segments_of(blob), state, _appended(_tail(blob), messages), end=0)


def head_of(blob: bytes) -> Head:
    """The counts of a blob."""
    return Head(*HEAD.unpack_from(blob))


def tail_of(blob: bytes) -> bytes:
    """What was said after the prompt row's messages, as a JSON list."""
    return b"[%b]" % _tail(blob)


def state_of(blob: bytes) -> bytes:
    """The state of its episode, a JSON object; empty when it never had one."""
    return bytes(_state(blob)) if HEAD.unpack_from(blob)[3] else b""


def tokens_of(blob: bytes) -> int:
    """Tokens of all segments together."""
    return head_of(blob).tokens


def segments_of(blob: bytes) -> list[int]:
    """Tokens of each segment; empty for a single one."""
    head = head_of(blob)
    return list(struct.unpack_from(f"<{head.segments}I", blob, HEAD.size + head.tokens * WIDTH))


def prefix_of(blob: bytes) -> bytes:
    """The tokens of the last segment, <i4: what the model reads when its episode goes on."""
    tokens = _columns(blob)[0]
    segments = segments_of(blob)
    return bytes(tokens[sum(segments[:-1]) * COLUMNS[0][2] :])


def join(blobs: Sequence[bytes]) -> list[Column]:
    """The four columns of many blobs, one after another."""
    pieces = zip(*map(_columns, blobs), strict=True) if blobs else [()] * len(COLUMNS)
    return [(name, dtype, b"".join(parts)) for (name, dtype, _), parts in zip(COLUMNS, pieces, strict=True)]


def _end(part: TrajectoryPart) -> int:
    if part.stop == "context" and not part.text_bytes:
        return NO_ROOM
    return ENDS.index(part.stop) if part.stop in ENDS else 0


def _columns(blob: bytes) -> "list[memoryview[int]]":
    view, tokens, at = memoryview(blob), HEAD.unpack_from(blob)[0], HEAD.size
    out = []
    for _, _, size in COLUMNS:
        out.append(view[at : at + tokens * size])
        at += tokens * size
    return out


def _tail(blob: bytes) -> bytes:
    return blob[len(blob) - HEAD.unpack_from(blob)[1] :]


def _state(blob: bytes) -> "memoryview[int]":
    head = head_of(blob)
    end = len(blob) - head.tail
    return memoryview(blob)[end - head.state : end]


def _appended(tail: bytes, more: bytes) -> bytes:
    return b",".join(part for part in (tail, more) if part)


def _blob(
    columns: Sequence["memoryview[int]"],
    segments: Sequence[int],
    state: "bytes | memoryview[int]",
    tail: bytes,
    *,
    end: int,
) -> bytes:
    """Put together; `columns` may be in pieces."""
    several = segments if len(segments) > 1 else ()
    tokens = sum(map(len, columns)) // WIDTH
    head = HEAD.pack(tokens, len(tail), len(several), len(state), end)
    return b"".join([head, *columns, struct.pack(f"<{len(several)}I", *several), state, tail])
