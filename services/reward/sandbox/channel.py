"""Frames between a pool and its workers: kind (1 byte), body length (4), job id (8), then the body as JSON.

In come INIT, once, JOB, and LIMIT, a new time limit for the jobs behind it. Out go READY or BROKEN, once, and for every
job BEGIN, before its body is even parsed, then SCORED, ACTED or FAULT; MORE says that a part of a long body was taken.
Whatever dies is thus to blame on the one job that has begun. Standard library only: workers load this file by its path.
"""

import os
import select
import struct
import sys

HEADER = struct.Struct("<cIQ")
INIT, JOB, LIMIT = b"I", b"J", b"L"
READY, BROKEN, BEGIN, MORE, SCORED, ACTED, FAULT = b"R", b"X", b"B", b"M", b"S", b"A", b"F"

LARGEST_REPORT = 1 << 20  # bytes of one frame from a worker
TAIL = 2000  # characters of a traceback or of output that travel


def frame(kind: bytes, job: int = 0, body: bytes = b"") -> bytes:
    """Encode one frame."""
    return HEADER.pack(kind, len(body), job) + body


class Channel:
    """Blocking frames over two file descriptors, which no program started by the user's code inherits."""

    def __init__(self, jobs: int, verdicts: int) -> None:
        self.jobs, self.verdicts = jobs, verdicts
        self._buffer = bytearray()
        for fd in (jobs, verdicts):
            os.set_inheritable(fd, False)

    @property
    def empty(self) -> bool:
        """Whether reading the next header could block."""
        return len(self._buffer) < HEADER.size

    def waiting(self) -> bool:
        """Whether the next header is here; takes what has come, and does not wait for more."""
        if len(self._buffer) < HEADER.size and select.select([self.jobs], [], [], 0)[0]:
            self._buffer += os.read(self.jobs, 1 << 16)
        return len(self._buffer) >= HEADER.size

    def header(self) -> tuple[bytes, int, int]:
        """Wait for a header: kind, body length, job id. Ends the process when the parent has closed the channel."""
        self._fill(HEADER.size)
        kind, length, job = HEADER.unpack(self._take(HEADER.size))
        return kind, length, job

    def body(self, length: int) -> bytes:
        """Wait for a body, telling the parent whenever there is room for more of it."""
        while len(self._buffer) < length:
            self.send(frame(MORE))
            self._fill(len(self._buffer) + 1)
        return self._take(length)

    def send(self, data: bytes) -> None:
        """Write all of `data`."""
        while data:
            data = data[os.write(self.verdicts, data) :]

    def _fill(self, size: int) -> None:
        while len(self._buffer) < size:
            chunk = os.read(self.jobs, 1 << 16)
            if not chunk:
                sys.exit(0)
            self._buffer += chunk

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken
