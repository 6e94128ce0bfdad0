"""Which part of a whole tensor this rank holds, and whether it is this rank that writes it.

Read off the placements of a DTensor, so a mesh may have any number of dimensions, and one dimension of a tensor may be
cut by several of them (`_StridedShard` of FSDP over tensor parallelism). Every part is a box: an offset and a size.
"""

from dataclasses import dataclass

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
        shape = tuple(tensor.shape)
        if not isinstance(tensor, DTensor):
            return cls(shape, (0,) * len(shape), shape)
        size, offset = compute_local_shape_and_global_offset(shape, tensor.device_mesh, tensor.placements)
        return cls(shape, tuple(offset), tuple(size))


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


def like(part: Tensor, tensor: Tensor) -> Tensor:
    """This rank's `part` on the device of `tensor`, with its cuts."""
    part = part.to(tensor.device)
    if not isinstance(tensor, DTensor):
        return part
    return DTensor.from_local(
        part, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
