"""`midflight tui --web`: the same screens in a browser on this machine, one process a visitor, through textual-serve.

There is no password: it binds 127.0.0.1 alone, and is read-only unless --write was given.
"""

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from midflight.kernel.mistake import UserMistake

HOST: Final = "127.0.0.1"


def command(run: Path, write: bool, theme: str) -> str:
    """What the server starts for each visitor."""
    words = [sys.executable, "-P", "-m", "midflight.kernel.cli.main", "tui", "--run", str(run)]
    words += ["--write"] if write else ["--read-only"]
    words += ["--theme", theme] if theme else []
    return shlex.join(words)


def serve(run: Path, port: int, write: bool, theme: str) -> int:
    """Serve until Ctrl-C. Raises UserMistake without textual-serve."""
    if find_spec("textual_serve") is None:
        raise UserMistake('--web needs textual-serve: pip install "midflight[web]"')
    from textual_serve.server import Server

    Server(command(run, write, theme), host=HOST, port=port, title=f"midflight {run.name}").serve()
    return 0
