"""midflight: post-train language models by asynchronous reinforcement learning, live."""

from pathlib import Path as _Path

__version__ = "0.1.0"
_repo = _Path(__file__).resolve().parents[2]
if (_repo / ".pkg").is_dir():  # a checkout: load the real folders, not the links to them
    __path__.insert(0, str(_repo))
