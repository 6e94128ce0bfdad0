"""The type of a data source in a configuration: paths become absolute, tasks and hub names stay as they are."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ValidationInfo

from midflight.kernel.spec import LocatedStr, must_be_here

from .raw import DataError
from .tasks import PREFIX, task_options

SUFFIXES = frozenset({".json", ".jsonl", ".csv", ".parquet", ".arrow"})


def locate(value: object, info: ValidationInfo) -> object:
    """`[split@]path` relative to its file; what neither exists nor has a data file's suffix is a hub name."""
    if isinstance(value, str) and value.startswith(PREFIX):
        _check_task(value)
        return value
    if not isinstance(value, str) or "://" in value:
        return value
    folder = value.folder if isinstance(value, LocatedStr) else os.getcwd()
    head, at, tail = value.rpartition("@")
    path = os.path.normpath(os.path.join(folder, os.path.expanduser(tail)))
    if not os.path.exists(path) and os.path.isdir(path.rpartition(":")[0]):  # one configuration of a folder
        return f"{head}{at}{path}"
    is_file = tail.startswith((".", "/", "~")) or Path(tail).suffix in SUFFIXES
    if is_file and must_be_here(value, info) and not os.path.exists(path):
        raise ValueError(f"no such file or folder: {path}")
    if is_file or os.path.exists(path):
        return f"{head}{at}{path}"
    return str(value)


def _check_task(source: str) -> None:
    try:
        task_options(source)
    except DataError as error:
        raise ValueError(str(error)) from None


Source = Annotated[str, BeforeValidator(locate)]
"""A file, a folder, `split@path`, a hub name, or `task:name?rows=...`."""
