"""Reads the user's file, without running it."""

import ast
import importlib.util
from pathlib import Path

from .verdict import RewardFileError


def read_source(file: Path) -> str:
    """Read and parse the user's file.

    Raises:
        RewardFileError: it cannot be read or is not Python.
    """
    try:
        raw = file.read_bytes()
        ast.parse(raw, str(file))
        return importlib.util.decode_source(raw)
    except OSError as error:
        raise RewardFileError(f"{file}: the reward file cannot be read: {error.strerror}") from None
    except SyntaxError as error:
        raise RewardFileError(f"{file}:{error.lineno}: the reward file is not Python: {error.msg}") from None
    except ValueError as error:
        raise RewardFileError(f"{file}:1: the reward file is not Python: {error}") from None
