"""Messages to frames and back.

    frame 0   0x01 | msgpack map: Envelope     <= 16 KiB
    frame 1   msgpack map: body of the kind    <= 256 KiB
    frame 2.. raw buffers                      <= 16 frames of <= 2 MiB

Sizes are checked before anything is unpacked and before anything is sent: a socket that refuses a frame drops the
peer and loses the message without a word. Every refusal carries a reason from `REASONS`, so that it can be counted.
"""

import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgpack
from msgpack import unpackb
from pydantic import ValidationError

from .base import Bulk, Message
from .catalogue import CATALOGUE
from .envelope import MAJOR, MINOR, Envelope
from .tensors import Column, check, describe, views

MAX_ENVELOPE: Final = 16 << 10
MAX_BODY: Final = 256 << 10
MAX_BUFFER: Final = 2 << 20
MAX_BUFFERS: Final = 16
MAX_FRAMES: Final = 2 + MAX_BUFFERS
MAX_KEYS: Final = 4096
REASONS: Final = ("frames", "size", "major", "msgpack", "envelope", "kind", "body", "buffers", "sender")
_MAJOR_BYTE = bytes([MAJOR])
_REJECT_BYTE = b"\x00"
_packer = msgpack.Packer(use_bin_type=True, autoreset=True)


class WireError(ValueError):
    """A message that must not be sent or was not understood. `reason` is one of `REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class Received(NamedTuple):
    """A decoded message: its envelope, its typed body and its raw frames."""

    envelope: Envelope
    message: Message
    buffers: Sequence[bytes]

    def views(self) -> dict[str, "memoryview[Any]"]:
        """The arrays of a bulk message by name, read-only."""
        return views(self.message.tensors, self.buffers) if isinstance(self.message, Bulk) else {}


class Sealer:
    """Numbers and packs the messages of one sender (`name#generation`)."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._numbers = itertools.count()

    def seal(
        self,
        kind: str,
        body: dict[str, Any],
        *,
        columns: Iterable[Column] = (),
        correlation: str | None = None,
        trace: str | None = None,
        cause: str | None = None,
    ) -> tuple[str, list[bytes]]:
        """-> (message id, frames). Raises WireError when a limit would be broken."""
        frames: list[bytes] = []
        if columns:
            descriptors, frames = describe(columns)
            body = {**body, "tensors": descriptors}
        number = next(self._numbers)
        head: dict[str, Any] = {"v": MINOR, "k": kind, "i": number, "s": self.source, "ts": time.time_ns()}
        if correlation is not None:
            head["c"] = correlation
        if trace is not None:
            head["t"] = trace
        if cause is not None:
            head["p"] = cause
        if frames:
            head["n"] = len(frames)
        packed = [_MAJOR_BYTE + _packer.pack(head), _packer.pack(body), *frames]
        _check_sizes(packed, kind)
        return f"{self.source}:{number}", packed


def dump(message: Message) -> dict[str, Any]:
    """The body of a typed message, without fields that hold their default."""
    body: dict[str, Any] = message.__pydantic_serializer__.to_python(message, exclude_defaults=True)
    return body


def decode(frames: Sequence[bytes]) -> Received:
    """Frames -> a validated message. Raises WireError, and nothing else, on any input.

    Here and in `dump` pydantic's core is called itself: the methods of the model add a third to its cost.
    """
    _check_sizes(frames, "incoming")
    if frames[0][0] != MAJOR:
        raise WireError("major", f"{frames[0][0]}, this side speaks {MAJOR}")
    try:
        head = unpackb(frames[0][1:], strict_map_key=True, max_map_len=MAX_KEYS, max_array_len=64)
        body = unpackb(frames[1], strict_map_key=True, max_map_len=MAX_KEYS, max_array_len=MAX_BODY)
    except ValueError as error:  # covers bad UTF-8, trailing bytes, format and nesting errors
        raise WireError("msgpack", type(error).__name__) from None
    try:
        envelope: Envelope = Envelope.__pydantic_validator__.validate_python(head)
    except ValidationError as error:
        raise WireError("envelope", _brief(error)) from None
    kind = CATALOGUE.get(envelope.k)
    if kind is None:
        raise WireError("kind", envelope.k)
    if envelope.v > MINOR and isinstance(body, dict):  # a newer peer may know more optional fields
        body = {key: value for key, value in body.items() if key in kind.model_fields}
    try:
        message: Message = kind.__pydantic_validator__.validate_python(body)
    except ValidationError as error:
        raise WireError("body", f"{envelope.k}: {_brief(error)}") from None
    buffers = frames[2:]
    if envelope.n != len(buffers):
        raise WireError("buffers", f"{len(buffers)} frames, the envelope says {envelope.n}")
    if isinstance(message, Bulk) and (why := check(message.tensors, buffers)):
        raise WireError("buffers", why)
    return Received(envelope, message, buffers)


def reject_frame() -> bytes:
    """The one format fixed for ever: what a peer of another major is told."""
    packed: bytes = _packer.pack({"supported": str(MAJOR)})
    return _REJECT_BYTE + packed


def is_reject(frames: Sequence[bytes]) -> bool:
    """Whether the other side refused our major version."""
    return len(frames) == 1 and frames[0][:1] == _REJECT_BYTE


def _check_sizes(frames: Sequence[bytes], what: str) -> None:
    if not 2 <= len(frames) <= MAX_FRAMES:
        raise WireError("frames", f"{what}: {len(frames)} frames, 2 to {MAX_FRAMES} allowed")
    if not 1 < len(frames[0]) <= MAX_ENVELOPE or not 0 < len(frames[1]) <= MAX_BODY:
        raise WireError("size", f"{what}: envelope {len(frames[0])} B, body {len(frames[1])} B")
    if len(frames) > 2 and (most := max(map(len, frames[2:]))) > MAX_BUFFER:
        raise WireError("size", f"{what}: a buffer of {most} B, at most {MAX_BUFFER}")


def _brief(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"[:300]
