"""Datasets of the Hugging Face hub, and folders: those `datasets` has saved, and those with data files in them.

A dataset is downloaded and prepared once, into $HF_DATASETS_CACHE, and memory-mapped from there; with HF_HUB_OFFLINE=1
only what is there is used.
"""

import os
from typing import Any, Final

from .extra import extra
from .raw import BadRow, DataError, RawRow

SAVED: Final = ("dataset_info.json", "dataset_dict.json")
"""What `save_to_disk` leaves in a folder; a dataset of several splits leaves the second."""


class HubRows:
    """The rows of a `datasets.Dataset`."""

    def __init__(self, name: str, data: Any) -> None:
        self._name, self._data = name, data

    def __len__(self) -> int:
        return int(self._data.num_rows)

    def __getitem__(self, number: int, /) -> RawRow | BadRow:
        return RawRow(f"{self._name}:{number + 1}", self._data[number])


def open_hub(path: str, split: str | None, config: str | None) -> HubRows:
    """A folder, or a dataset of the hub by its name. Without a split it is `train`.

    Raises:
        DataError: the `datasets` library is missing or cannot load it, or there is no such split.
    """
    datasets = extra("datasets", path)
    name = split or "train"
    try:
        if any(os.path.isfile(os.path.join(path, mark)) for mark in SAVED):
            data = datasets.load_from_disk(path)
        else:
            data = datasets.load_dataset(path, config, split=name)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: `datasets` cannot load it: {error}") from error
    if isinstance(data, dict):
        if name not in data:
            raise DataError(f"{path}: no split {name!r}; it has {', '.join(data)} - write 'SPLIT@{path}'")
        data = data[name]
    return HubRows(path, data)
