"""Exit codes of the command line, and the one error that carries one."""

from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NO_RUN: Final = 3
REFUSED: Final = 4
TIMED_OUT: Final = 5
STALE: Final = 6
INTERRUPTED: Final = 130


class Stop(Exception):
    """End the command with this code, after saying why on stderr."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code
