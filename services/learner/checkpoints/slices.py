"""Which part of a whole tensor this rank holds, and whether it is this rank that writes it.

Read off the placements of a DTensor, so a mesh may have any number of dimensions, and one dimension of a tensor may be
cut by several of them (`_StridedShard` of FSDP over tensor parallelism). Every part is a box: an offset and a size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

Extent = tuple[int, ...]
Box = tuple[Extent, Extent]
"""Offset and size."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a tensor. shape: of the whole. offset, size: of the part, an entry each dimension."""

    shape: Extent
    offset: Extent
    size: Extent

    @classmethod
    def of(cls, tensor: Tensor) -> "Slice":
        """What this rank holds of `tensor`; all of it when it is not cut."""
        return cls.cut(tuple(tensor.shape), tensor)

    @classmethod
    def cut(cls, shape: Extent, like: Tensor) -> "Slice":
        """What this rank holds of a tensor of that shape with the cuts of `like`."""
        if not isinstance(like, DTensor):
            return cls(shape, (0,) * len(shape), shape)
        size, offset = compute_local_shape_and_global_offset(shape, like.device_mesh, like.placements)
        return cls(shape, tuple(offset), tuple(size))

    @property
    def within(self) -> tuple[slice, ...]:
        """Index of the part in the whole."""
        return tuple(slice(a, a + n) for a, n in zip(self.offset, self.size, strict=True))


def local(tensor: Tensor) -> Tensor:
    """The part in this process's memory; not copied."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def writes(tensor: Tensor, first: bool) -> bool:
    """Whether this rank writes its part: of equal copies along a dimension of the mesh, the first; never an empty one.

    first: whether this is the first rank of the group, which writes what is not on a mesh.
    """
    if not isinstance(tensor, DTensor):
        return first
    at = tensor.device_mesh.get_coordinate()
    if at is None or (tensor.numel() and not local(tensor).numel()):
        return False
    return all(not index or not place.is_replicate() for place, index in zip(tensor.placements, at, strict=True))


def like(part: Tensor, tensor: Tensor, shape: Extent | None = None) -> Tensor:
    """This rank's `part` on the device of `tensor`, with its cuts. shape: of the whole; that of `tensor` when None."""
    if not isinstance(tensor, DTensor):
        return part.to(tensor.device)
    size = torch.Size(shape or tensor.shape)
    stride = tuple(size[at + 1 :].numel() for at in range(len(size)))
    made = DTensor.from_local(part, tensor.device_mesh, tensor.placements, run_check=False, shape=size, stride=stride)
    return made.to(tensor.device)  # what is offloaded is not on the device of its mesh
