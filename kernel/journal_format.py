"""The journal's bytes: a header, then records that can be found again after any damage.

    file    magic "MIDFLJNL" | version u16 | salt u32 | crc u32                    little-endian, 18 bytes
    record  mark F5 4A 52 4E | flag u8 | length u32 | crc u32 | payload (msgpack)   13 bytes + payload

A record's crc covers flag, length and payload and starts from the file's salt. The mark lets a reader find the next
record behind a damaged one; since its first byte never occurs in UTF-8 and the salt is the file's own, text inside a
payload cannot pose as a record. Flag 1 is a snapshot: recovery needs the last one and what follows it. Flag 2 is a
`Place`, written at the beginning of a file that follows another and every 64 KiB: whoever looks for an event or a
training step jumps to any byte, reads the next place, and knows on which side of it to go on.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from typing import Any
from zlib import crc32

import msgpack

MAGIC, VERSION = b"MIDFLJNL", 1
HEADER, RECORD = struct.Struct("<8sHII"), struct.Struct("<4sBII")
MARK = b"\xf5JRN"
PLAIN, SNAPSHOT, PLACE = 0, 1, 2
MAX_PAYLOAD = 16 << 20
PLACE_EVERY = 64 << 10
"""Bytes between two places."""


class NotAJournal(ValueError):
    """The file has another magic or version, or its header is damaged."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record: where it lies, where the next one begins, and what it says."""

    start: int
    end: int
    flag: int
    payload: bytes

    def value(self) -> Any:
        """Decode the payload. Raises ValueError if it is not msgpack, which the crc makes a defect of the writer."""
        return msgpack.unpackb(self.payload)


@dataclass(slots=True)
class Place:
    """Where in a run a point of its journal lies: what came before it."""

    seq: int = 0
    """Number of the newest event."""
    step: int = -1
    """Highest training step that was measured."""

    def take(self, value: Any) -> None:
        """Go past one record."""
        if isinstance(value, dict) and value.get("t") == "event":
            self.seq = value["seq"]
            step = value["step"]
            if value["topic"] == "metrics" and step is not None and step > self.step:
                self.step = step

    def dump(self) -> list[int]:
        """Plain values; `Place(*values)` undoes it."""
        return [self.seq, self.step]


def pack(value: object, flag: int, salt: int) -> bytes:
    """One record. Raises ValueError or TypeError if the value is too large or cannot be packed."""
    try:
        payload: bytes = msgpack.packb(value)
    except OverflowError as error:
        raise ValueError(f"the journal cannot hold this value: {error}") from error
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a journal record of {len(payload)} bytes is too large (at most {MAX_PAYLOAD})")
    return RECORD.pack(MARK, flag, len(payload), _crc(flag, payload, salt)) + payload


def pack_header(salt: int) -> bytes:
    """The first bytes of a file."""
    return HEADER.pack(MAGIC, VERSION, salt, crc32(HEADER.pack(MAGIC, VERSION, salt, 0)))


def read_header(data: bytes) -> int | None:
    """Return the salt, or None when the header is not all there yet. Raises NotAJournal."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise NotAJournal("not a midflight journal (wrong first bytes)")
    if len(data) < HEADER.size:
        return None
    _, version, salt, crc = HEADER.unpack_from(data)
    if crc != crc32(HEADER.pack(MAGIC, version, salt, 0)):
        raise NotAJournal("the journal's header is damaged")
    if version != VERSION:
        raise NotAJournal(f"journal of version {version}; this midflight reads version {VERSION}")
    return int(salt)


def scan(data: bytes | mmap, salt: int, base: int = 0) -> Iterator[Record]:
    """All intact records of `data` in order; damage in between shows as a hole between `end` and `start`.

    `base` is where in the file `data` begins. What follows the last intact record is unfinished or damaged: nobody can
    tell until more is written.
    """
    at = 0
    while (at := data.find(MARK, at)) >= 0:
        record = _record_at(data, at, salt, base)
        if record is None:
            at += 1
        else:
            yield record
            at = record.end - base


def _record_at(data: bytes | mmap, at: int, salt: int, base: int) -> Record | None:
    if at + RECORD.size > len(data):
        return None
    _, flag, length, crc = RECORD.unpack_from(data, at)
    start = at + RECORD.size
    if length > MAX_PAYLOAD or start + length > len(data):
        return None
    payload = data[start : start + length]
    return Record(base + at, base + start + length, flag, payload) if _crc(flag, payload, salt) == crc else None


def _crc(flag: int, payload: bytes, salt: int) -> int:
    return crc32(payload, crc32(struct.pack("<BI", flag, len(payload)), salt))
