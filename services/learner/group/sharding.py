"""Parameters cut over the ranks of a mesh (FSDP2), and what is whole again for engines.

Gradients are summed, not averaged, in float32 or wider: a loss is divided by the denominator of the whole batch before.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from midflight.services.learner.checkpoints import slices

SMALL = 20_000_000
"""Parameters up to which a model is one unit that stays gathered from the forward to the backward pass: measured on two
CPU ranks, 1.98 times one rank's speed, and 1.79 with a unit for every layer."""


def shard(
    module: nn.Module, layers: list[nn.Module], mesh: DeviceMesh, *, bf16: bool = False, host: bool = False
) -> None:
    """Cut every parameter of `module`, whose forward uses them all, over the mesh (copies, shards).

    layers: what is gathered, used and let go one after another, in a model that is not small. bf16: they compute under
    bfloat16 autocast, so float32 ones are gathered in bfloat16: half the bytes. What is not a layer is gathered as it
    is, the head above all, and what goes from layer to layer is not rounded. host: what a rank keeps, parameters,
    gradients and whatever an optimizer makes beside them, is in host memory; on a GPU is what is gathered (not yet run
    on one).
    """
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": _precision(module)}
    if host:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu")
    narrow = options | {"mp_policy": _precision(module, torch.bfloat16)} if bf16 and _float32(module) else options
    if sum(p.numel() for p in module.parameters()) > SMALL:
        for layer in layers:
            fully_shard(layer, **narrow)
    else:
        options["reshard_after_forward"] = False
        if layers and narrow is not options:
            fully_shard(layers, **narrow, reshard_after_forward=False)
    fully_shard(module, **options)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def _precision(module: nn.Module, gathered: torch.dtype | None = None) -> MixedPrecisionPolicy:
    """gathered: in which parameters are; as they are when None."""
    half = gathered or any(p.dtype.itemsize < torch.float32.itemsize for p in module.parameters())
    reduced = torch.float32 if half else None
    return MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=reduced, cast_forward_inputs=False)


def _float32(module: nn.Module) -> bool:
    return all(p.dtype == torch.float32 for p in module.parameters() if p.requires_grad)


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
    """A whole tensor, the same on every rank, cut as `like` is, on its device; one that is cut already stays so."""
    if isinstance(tensor, DTensor):
        return tensor
    part = slices.Slice.cut(tuple(tensor.shape), like)
    return slices.like(tensor[part.within] if isinstance(like, DTensor) else tensor, like, part.shape)
