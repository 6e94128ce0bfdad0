"""The levels by name, and the command that starts a worker at each."""

import json
import os
import sys
from pathlib import Path

SEALED = ("bwrap", "namespaces")
"""The levels that hold code nobody vouches for, the stronger first."""
LOCAL = (*SEALED, "rlimits")
"""The levels at which workers are processes of this machine."""
_START = Path(__file__).with_name("start.py")


def check(level: str) -> None:
    """Raise ValueError unless workers of this machine can be started at this level."""
    if level not in LOCAL:
        raise ValueError(f"reward isolation {level!r} is not available here - use one of {', '.join(LOCAL)}")


def argv(level: str, jobs: int, verdicts: int, python_path: tuple[str, ...], *, network: bool) -> list[str]:
    """Return the command that starts a worker at a level; `sandbox` says what each stops, and what not.

    Level "rlimits" bounds wall time, CPU time, address space, file size and open files, gives a clean environment and
    an empty home, and kills the process group. It does NOT stop code that reads or writes other files of this user,
    opens network connections, traces processes, leaves its group by setsid() and so outlives the kill, forks without
    bound, or searches its own process for the verdict channel. So it is for code that you trust.

    Raises:
        ValueError: no worker of this machine works at that level.
    """
    check(level)
    python = [sys.executable, "-I", "-u", str(_START)]
    ends = [str(jobs), str(verdicts), str(os.getpid())]
    if level == "rlimits":
        return [*python, "worker", *ends]
    options = {"level": level, "python_path": python_path, "network": network}
    return [*python, "enter", *ends, json.dumps(options)]
