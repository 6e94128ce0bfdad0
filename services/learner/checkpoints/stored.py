"""The tensors of a checkpoint, whatever ranks wrote them: a reader takes the slices it needs and maps the rest.

A stem ("model") is one file, `model.safetensors`, or one for each rank that had a part, `model-rank-1-of-2.safetensors`
(ranks count from 0).
"""

import json
import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import CheckpointError
from .slices import Box, Extent, Slice
from .tensorfile import DTYPES, SLICES

TORCH_TYPES = {text: dtype for dtype, text in DTYPES.items()}
Shapes = Mapping[str, Extent]


def file_name(stem: str, rank: int = 0, world: int = 1) -> str:
    """Where a rank keeps its part of a stem."""
    return f"{stem}.safetensors" if world == 1 else f"{stem}-rank-{rank}-of-{world}.safetensors"


def whole_model(folder: Path, stem: str = "model") -> dict[str, Tensor]:
    """Every tensor of a checkpoint's model, put together; for exports. Nothing is hashed: see `checkpoint.verify`."""
    stored = Stored(folder, stem, [path.name for path in folder.iterdir()])
    return {name: stored.whole(name) for name in stored.shapes}


class Stored:
    """One stem of a checkpoint. names: the files of its folder.

    Raises CheckpointError when a file cannot be read, or the parts of a tensor do not make up the whole.
    """

    def __init__(self, folder: Path, stem: str, names: Iterable[str]) -> None:
        self._about = f"{folder}: {stem}"
        self.shapes: dict[str, Extent] = {}
        self._pieces: dict[str, dict[Box, Any]] = {}
        own = re.compile(re.escape(stem) + r"(-rank-\d+-of-\d+)?\.safetensors")
        try:
            for name in sorted(filter(own.fullmatch, names)):
                self._add(safe_open(folder / name, framework="pt"))
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self._about}: unreadable: {error}") from error
        for name in self.shapes:
            self._check(name)

    def _add(self, file: Any) -> None:
        """Note what is in a file. Equal parts of two ranks count once."""
        places: dict[str, list[list[int]]] = json.loads((file.metadata() or {}).get(SLICES, "{}"))
        for name in file.keys():  # noqa: SIM118 - not a dict
            size = tuple(file.get_slice(name).get_shape())
            shape, offset = map(tuple, places.get(name, [list(size), [0] * len(size)]))
            if self.shapes.setdefault(name, shape) != shape:
                raise ValueError(f"{name} is {self.shapes[name]} in one file and {shape} in another")
            self._pieces.setdefault(name, {})[offset, size] = file

    def _check(self, name: str) -> None:
        """Every element of the tensor is in exactly one part."""
        shape, boxes = self.shapes[name], list(self._pieces[name])
        whole = len(boxes) == 1 and boxes[0][1] == shape
        if whole:
            return
        first = torch.tensor([offset for offset, _ in boxes])
        last = first + torch.tensor([size for _, size in boxes])
        inside = bool((first >= 0).all() and (last <= torch.tensor(shape)).all())
        common = (torch.minimum(last[:, None], last) > torch.maximum(first[:, None], first)).all(-1)
        apart = int(common.sum()) == sum(bool(prod(size)) for _, size in boxes)
        if not (inside and apart and sum(prod(size) for _, size in boxes) == prod(shape)):
            raise CheckpointError(f"{self._about}: the parts of {name} do not make up a tensor of shape {shape}")

    def read(self, name: str, part: Slice) -> Tensor:
        """A part of a tensor, in memory of its own, from whatever files hold some of it."""
        out: Tensor | None = None
        for (offset, size), file in self._pieces[name].items():
            low = tuple(map(max, offset, part.offset))
            high = tuple(min(a + m, b + n) for a, m, b, n in zip(offset, size, part.offset, part.size, strict=True))
            if out is None:
                out = torch.empty(part.size, dtype=TORCH_TYPES[file.get_slice(name).get_dtype()])
            if all(a < b for a, b in zip(low, high, strict=True)):
                there, here = _within(offset, low, high), _within(part.offset, low, high)
                all_of_it = low == offset and high == tuple(map(sum, zip(offset, size, strict=True)))
                found = file.get_tensor(name) if all_of_it else file.get_slice(name)[there]
                out[here] = found
        assert out is not None
        return out

    def whole(self, name: str) -> Tensor:
        """A tensor without cuts."""
        shape = self.shapes[name]
        return self.read(name, Slice(shape, (0,) * len(shape), shape))

    def held(self, name: str, tensor: Tensor) -> Tensor:
        """What this rank holds of a tensor that is cut as `tensor`, of the same shape, is."""
        return self.read(name, Slice.of(tensor))


def _within(start: Extent, low: Extent, high: Extent) -> tuple[slice, ...]:
    return tuple(slice(a - s, b - s) for s, a, b in zip(start, low, high, strict=True))
