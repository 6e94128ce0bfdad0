"""Per-token numbers of a few rows of a batch, taken along while it is trained on. Nothing is computed for them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from midflight.services.algorithms.masks import together

from .metrics import TokenRecord


@dataclass(slots=True)
class Watched:
    """The rows looked at, and what was found on their action tokens. references: whether there is one to measure."""

    rows: tuple[int, ...]
    references: bool = False
    _sequence: list[Tensor] = field(default_factory=list)
    _numbers: list[Tensor] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns, in the order they are stacked."""
        return ("advantage", "entropy", "logprob", "behaviour", "gap", "mask", *(("kl",) if self.references else ()))

    def add(self, record: TokenRecord) -> None:
        """Keep a micro-batch's numbers, wherever they are; they are read when the step is over."""
        trained = record.mask & together(record.kept, record.mask)
        gap = record.logp - record.behaviour
        found = [record.advantage, record.entropy, record.logp, record.behaviour, gap, trained, record.kl]
        self._sequence.append(record.sequence)
        self._numbers.append(torch.stack([x.detach().float() for x in found[: len(self.names)]]))

    def columns(self) -> dict[int, dict[str, list[float]]]:
        """Row -> column -> one number for each of its action tokens, in order; 0 for what is not finite."""
        if not self._sequence:
            return {}
        sequence, numbers = torch.cat(self._sequence), torch.cat(self._numbers, 1).nan_to_num(0.0, 0.0, 0.0)
        rows = torch.tensor(self.rows, device=sequence.device)
        chosen = torch.isin(sequence, rows)
        sequence, numbers = sequence[chosen].cpu(), numbers[:, chosen].cpu()
        own = {row: sequence == row for row in self.rows}
        return {row: dict(zip(self.names, numbers[:, at].tolist(), strict=True)) for row, at in own.items()}
