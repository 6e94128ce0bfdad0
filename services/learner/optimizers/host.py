"""The optimizer's side of a model on the host: copies of the parameters, which the rules move in their place.

Moments then are host memory as well, and the step is computed there. Gradients come once an update, when they are
clipped; the new parameters go back. Bit for bit the same numbers as on the same device without.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class Twins:
    """`of` each parameter, a copy on the host. Not yet run on a GPU, from which all copies are pinned."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.of: dict[Tensor, Tensor] = {p: on_host(p).requires_grad_() for p in parameters}
        self._seen = {p: p._version for p in self.of}
        settled(self.of)

    @torch.no_grad()
    def before(self) -> None:
        """An update is coming: take the gradients, and parameters that others have written since."""
        for p, twin in self.of.items():
            if p._version != self._seen[p]:
                twin.copy_(p, non_blocking=True)
            twin.grad = None if p.grad is None else on_host(p.grad)
        settled(self.of)

    @torch.no_grad()
    def after(self) -> None:
        """An update was made: the parameters follow."""
        for p, twin in self.of.items():
            twin.grad = None
            p.copy_(twin, non_blocking=True)
            self._seen[p] = p._version


def on_host(tensor: Tensor) -> Tensor:
    """A copy, which is there once `settled`."""
    twin = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)
    return twin.copy_(tensor.detach(), non_blocking=True)


def settled(tensors: Iterable[Tensor]) -> None:
    """Wait until what was copied from a GPU is on the host."""
    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.synchronize()
