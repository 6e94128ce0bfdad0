"""Which rule moves which parameter."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .eight_bit import AdamW8bit
from .lamb import Lamb
from .muon import Muon
from .settings import OptimSettings

DECAYED = "decayed"
"""Key of a parameter group: whether weight decay is for it."""


def rules(module: nn.Module, settings: OptimSettings) -> list[torch.optim.Optimizer]:
    """The optimizers of a module's trainable parameters, each parameter in one of them.

    Their groups carry `decayed`; learning rate and weight decay are set before each batch.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    lr, betas, eps, momentum = settings.lr, settings.betas, settings.eps, settings.momentum
    match settings.name:
        case "sgd":
            return [torch.optim.SGD(groups(trained), lr=lr, momentum=momentum)]
        case "lamb":
            return [Lamb(groups(trained), lr=lr, betas=betas, eps=eps)]
        case "adamw_8bit":
            return [AdamW8bit(groups(trained), lr=lr, betas=betas, eps=eps)]
    matrices = hidden_matrices(module) if settings.name == "muon" else []
    taken = set(matrices)
    rest = [p for p in trained if p not in taken]
    muon = [Muon(groups(matrices), lr=lr, momentum=momentum)] if matrices else []
    adam = [torch.optim.AdamW(groups(rest), lr=lr, betas=betas, eps=eps, fused=True)] if rest else []
    return [*muon, *adam]


def groups(parameters: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Matrices, which weight decay is for, and vectors, which it is not for; without empty ones."""
    parameters = list(parameters)
    matrices, vectors = [p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]
    return [{"params": ps, DECAYED: decayed} for ps, decayed in ((matrices, True), (vectors, False)) if ps]


def hidden_matrices(module: nn.Module) -> list[Tensor]:
    """Trainable matrices between the embedding and the head; one of a single row or column is a vector."""
    outer: set[Tensor] = set()
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            outer.update(part.parameters())
        head = getattr(part, "get_output_embeddings", None)
        if head and (found := head()) is not None:
            outer.update(found.parameters())
    return [p for p in module.parameters() if p.requires_grad and p.dim() == 2 and min(p.shape) > 1 and p not in outer]
