"""Libraries that only some sources need."""

import importlib
from types import ModuleType

from .raw import DataError


def extra(module: str, path: str) -> ModuleType:
    """Import an optional library to read `path`, or say how to get it.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        root = module.partition(".")[0]
        raise DataError(f'{path}: reading it needs {root} - pip install "midflight[data]"') from None
