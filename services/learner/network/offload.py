"""Activations on the host between the forward and the backward pass.

What autograd keeps is packed when it is saved and unpacked when it is used. A layer that is recomputed keeps its input
alone, and that goes to the host as well. Parameters stay where they are: autograd keeps them beside activations, but
they take no memory of their own, and FSDP lets go of their storage and fills it again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor

SMALLEST = 1024
"""Bytes below which a tensor stays: its way would take longer than its place is worth. So do indices, which others
hold as well."""
Packed = tuple[torch.device, Tensor]


class Offload:
    """Of one model's layers; `on_host` is entered around each forward pass of it."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self._parameters: set[int] = set()
        """Storages of what has been computed with in this pass."""
        for layer in layers:
            layer.register_forward_pre_hook(self._enter)  # after FSDP's own, which gathers

    def _enter(self, layer: nn.Module, _: Any) -> None:
        self._parameters.update(_storage(p.to_local() if isinstance(p, DTensor) else p) for p in layer.parameters())

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """What is saved for a backward pass meanwhile."""
        self._parameters.clear()
        with saved_tensors_hooks(self._pack, unpacked):
            yield

    def _pack(self, tensor: Tensor) -> Packed:
        stays = tensor.nbytes < SMALLEST or not tensor.is_floating_point() or _storage(tensor) in self._parameters
        return tensor.device, tensor if stays else to_host(tensor)


def to_host(tensor: Tensor) -> Tensor:
    """Where it is already on a CPU; a copy in pinned memory from a GPU, made in the order of its stream.

    Not yet run on a GPU.
    """
    if tensor.device.type == "cpu":
        return tensor
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


def unpacked(packed: Packed) -> Tensor:
    """On the device again."""
    device, tensor = packed
    return tensor.to(device, non_blocking=True)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
