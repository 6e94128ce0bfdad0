"""Structured logs: one JSON object a line, bounded on disk, never a reason to fail.

Every record carries the run, the service, its generation and, while a message is handled, its trace id. Values under
keys that name a secret are replaced. When the disk is full records are dropped and counted.
"""

import json
import os
import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final

import structlog

MAX_BYTES: Final = 16 << 20
_SECRET: Final = re.compile(r"token|secret|password|api_?key|credential", re.IGNORECASE)


class LogFile:
    """An append-only file that keeps one older part."""

    def __init__(self, path: Path) -> None:
        self.path, self.dropped = path, 0
        self._open()

    def msg(self, line: str) -> None:
        """Write one line; on a full disk count it instead."""
        data = line.encode() + b"\n"
        try:
            if self._size + len(data) > MAX_BYTES:
                os.close(self._fd)
                self.path.replace(self.path.with_suffix(".1.jsonl"))
                self._open()
            self._size += os.write(self._fd, data)
        except OSError:
            self.dropped += 1

    log = debug = info = warning = warn = error = critical = exception = fatal = failure = msg

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size


def configure(path: Path, **context: str | int) -> None:
    """Send structlog to `path` and bind the context (run, service, generation)."""
    log_file = LogFile(path)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            structlog.processors.JSONRenderer(serializer=json.dumps),
        ],
        logger_factory=lambda *_: log_file,
        wrapper_class=structlog.make_filtering_bound_logger(20),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**context)


def redact(_logger: object, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace values whose key names a secret."""
    for key in record:
        if _SECRET.search(key):
            record[key] = "***"
    return record
