"""`midflight tui --web`: the same screens in a browser on this machine, one process a visitor, through textual-serve.

There is no password. It binds 127.0.0.1 alone, answers only pages it served itself, so that no other page that is open
in the same browser can speak to it, and is read-only unless --write was given.
"""

import shlex
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from midflight.kernel.mistake import UserMistake

HOST: Final = "127.0.0.1"
NAMES: Final = frozenset({HOST, "localhost"})
"""What a browser may call this machine; another name is another site's that points here."""


def command(run: Path, write: bool, theme: str) -> str:
    """What the server starts for each visitor."""
    words = [sys.executable, "-P", "-m", "midflight.kernel.cli.main", "tui", "--run", str(run)]
    words += ["--write"] if write else ["--read-only"]
    words += ["--theme", theme] if theme else []
    return shlex.join(words)


def is_ours(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from this machine's browser and from a page of this server. Any port: ssh may forward."""
    host, origin = headers.get("Host", ""), headers.get("Origin")
    return urlsplit(f"//{host}").hostname in NAMES and origin in (None, f"http://{host}")


def serve(run: Path, port: int, write: bool, theme: str) -> int:
    """Serve until Ctrl-C. Raises UserMistake without textual-serve."""
    if find_spec("textual_serve") is None:
        raise UserMistake('--web needs textual-serve: pip install "midflight[web]"')
    server = import_module("midflight.tui.web_server")  # which needs the library
    server.Guarded(command(run, write, theme), host=HOST, port=port, title=f"midflight {run.name}").serve()
    return 0
