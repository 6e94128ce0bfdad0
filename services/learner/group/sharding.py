"""Parameters cut over the ranks of a mesh (FSDP2), and what is whole again for engines.

Gradients are summed, not averaged, in float32: a loss is divided by the denominator of the whole batch before.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

SMALL = 20_000_000
"""Parameters up to which a model is one unit that stays gathered from the forward to the backward pass: measured on two
CPU ranks, 1.98 times one rank's speed, and 1.79 with a unit for every layer."""


def shard(module: nn.Module, layers: list[nn.Module], mesh: DeviceMesh) -> None:
    """Cut every parameter of `module`, whose forward uses them all, over the mesh (copies, shards).

    layers: what is gathered, used and let go one after another, in a model that is not small.
    """
    options: dict[str, Any] = {"mesh": mesh}
    if sum(p.numel() for p in module.parameters()) > SMALL:
        for layer in layers:
            fully_shard(layer, **options)
    else:
        options["reshard_after_forward"] = False
    fully_shard(module, **options)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def cut_again(module: nn.Module) -> None:
    """Let go what a forward pass without a backward pass has gathered."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The tensor without cuts; all ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def wholes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of them, asked for in the order given, which is every rank's; one tensor under two names stays one.

    What was cut comes to the host, one after another.
    """
    made: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in made:
            joined = whole(tensor)
            made[id(tensor)] = tensor if joined is tensor else joined.cpu()
    return {name: made[id(tensor)] for name, tensor in tensors.items()}


@torch.no_grad()
def cut_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on every rank, cut as `like` is, on its device."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    return cast(Tensor, distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None))
