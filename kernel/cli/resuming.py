"""What `midflight up` says of going on: the command for it, and what is different when it is done."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from midflight.kernel.config.compose import display
from midflight.kernel.config.errors import is_hidden

MOST = 10
"""Lines that are told of what is different."""


def command(arguments: argparse.Namespace, run_dir: Path) -> str:
    """For a shell in this directory; with the overlays and overrides of this start, which `--resume` does not keep."""
    words = ["midflight", "up", arguments.topology]
    for overlay in arguments.file:
        words += ["-f", overlay]
    words += map(_without_secret, arguments.overrides)
    return shlex.join([*words, "--resume", "--run-dir", display(os.fspath(run_dir))])


def told(differs: Sequence[str]) -> str:
    """Lines to be put behind the one that names the run."""
    if not differs:
        return ""
    more = [f"  and {len(differs) - MOST} more"] if len(differs) > MOST else []
    return "\n".join(["; it last ran with other values:", *(f"  {line}" for line in differs[:MOST]), *more])


def _without_secret(override: str) -> str:
    key, equals, value = override.partition("=")
    names = (*key.split("."), value) if value.lstrip().startswith("{") else tuple(key.split("."))
    return f"{key}{equals}..." if is_hidden(value, names) else override
