"""Modules of which each rank of a one-dimensional mesh holds, and computes, a slice.

A parameter becomes a DTensor, and the module computes with the part of it that is here, on plain tensors: torch keeps
an entry for each operation on DTensors and every shape it has seen, and every pack has another length.
"""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

Slicing = Callable[[Any, DeviceMesh], None]
"""Changes a module in place, which was the same on every rank."""


def whole(module: Any, mesh: DeviceMesh) -> None:
    """All of it on each rank, on the same input."""
    _compute_here(module, mesh, Replicate())


def of_heads(module: Any, mesh: DeviceMesh) -> None:
    """All of it on each rank, on that rank's heads: what they find of its gradients is to be added up."""
    _compute_here(module, mesh, Replicate(), Partial())


def columns(module: Any, mesh: DeviceMesh) -> None:
    """A linear layer with a share of its outputs on each rank; see `fan_out` for the gradient of its input."""
    _compute_here(module, mesh, Shard(0))


def rows(module: Any, mesh: DeviceMesh) -> None:
    """A linear layer with a share of its inputs on each rank; the outputs are whole on all."""
    bias, group = module.bias, mesh.get_group()
    module.bias = None
    _compute_here(module, mesh, Shard(1))
    compute = module.forward
    module.bias = None if bias is None else distributed(bias, mesh, Replicate())

    def forward(inputs: Tensor) -> Tensor:
        out = added(compute(inputs), group)
        return out if module.bias is None else out + module.bias.to_local().to(out.dtype)

    module.forward = forward


def tokens(module: Any, mesh: DeviceMesh) -> None:
    """An embedding with a share of the tokens on each rank; the outputs are whole on all."""
    count, group = module.num_embeddings // mesh.size(), mesh.get_group()
    first = mesh.get_local_rank() * count
    padding = module.padding_idx
    if padding is not None:
        module.padding_idx = padding - first if first <= padding < first + count else None
    _compute_here(module, mesh, Shard(0))
    compute = module.forward

    def forward(ids: Tensor) -> Tensor:
        own = ids - first
        here = (own >= 0) & (own < count)
        return added(compute(own.clamp(0, count - 1)) * here.unsqueeze(-1), group)

    module.forward = forward


def fan_out(module: Any, mesh: DeviceMesh) -> None:
    """Projections by columns read the input: what flows back from all of them is added up over the ranks, once."""
    group = mesh.get_group()

    def enter(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if inputs:
            return (fanned_out(inputs[0], group), *inputs[1:]), named
        return inputs, named | {"hidden_states": fanned_out(named["hidden_states"], group)}

    module.register_forward_pre_hook(enter, with_kwargs=True)


def _compute_here(module: Any, mesh: DeviceMesh, placement: Placement, gradient: Placement | None = None) -> None:
    """Cut a module's own parameters, and let its forward see what of them is here."""
    twin = copy.copy(module)
    twin._parameters = dict.fromkeys(module._parameters)
    names = [name for name, _ in module.named_parameters(recurse=False)]
    for name in names:
        module.register_parameter(name, distributed(module.get_parameter(name), mesh, placement))

    def forward(*inputs: Any, **named: Any) -> Any:
        for name in names:
            parameter: DTensor = getattr(module, name)
            twin._parameters[name] = parameter.to_local(grad_placements=[gradient or placement])
        return twin.forward(*inputs, **named)

    module.forward = forward


def distributed(parameter: Tensor, mesh: DeviceMesh, placement: Placement) -> nn.Parameter:
    """A parameter that was the same on every rank, cut; it trains if that did."""
    cut = distribute_tensor(parameter.detach(), mesh, [placement], src_data_rank=None)
    return nn.Parameter(cut, requires_grad=parameter.requires_grad)


def added(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over the ranks, on each of them, in place; each has the same gradient of it already."""
    return cast(Tensor, _Added.apply(value, group))  # type: ignore[no-untyped-call]


def fanned_out(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    """What all ranks have; the gradients that each finds of it are added up."""
    return cast(Tensor, _FannedOut.apply(value, group))  # type: ignore[no-untyped-call]


class _Added(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.mark_dirty(value)
        dist.all_reduce(value, group=group)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _FannedOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None
