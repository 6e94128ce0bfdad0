"""Masks by name, and the table that says which correction a batch of a given age gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from . import corrections
from .losses import LossKind

MaskName = Literal["token", "sequence", "geometric", "trm", "opsm", "m2po"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of the masks; see `corrections` for each. Ratios for the bands, nats for trm and opsm, nats^2 for m2po."""

    token: tuple[float, float] = corrections.BAND
    sequence: tuple[float, float] = (0.0, 2.0)
    geometric: tuple[float, float] = (0.99, 1.01)
    trm_most: float | None = None
    trm_mean: float | None = 0.01
    opsm: float = 0.5
    m2po: float = 0.04


def keep_by_name(
    names: Sequence[MaskName], limits: Limits, x: Tensor, sequence: Tensor, mask: Tensor, advantage: Tensor
) -> Mapping[str, Tensor]:
    """name -> bool [A], true where that mask keeps a token. Arguments as in `corrections`."""
    return {name: _one(name, limits, x, sequence, mask, advantage) for name in names}


def together(kept: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """bool [A]: counted, and kept by every mask."""
    return torch.stack([mask, *kept.values()]).all(0)


def _one(name: MaskName, limits: Limits, x: Tensor, sequence: Tensor, mask: Tensor, advantage: Tensor) -> Tensor:
    match name:
        case "token":
            return corrections.token_band(x, *limits.token)
        case "sequence":
            return corrections.sequence_band(x, sequence, mask, *limits.sequence)
        case "geometric":
            return corrections.geometric_band(x, sequence, mask, *limits.geometric)
        case "trm":
            return corrections.trust_region_mask(x, sequence, mask, limits.trm_most, limits.trm_mean)
        case "opsm":
            return corrections.opsm(x, sequence, mask, advantage, limits.opsm)
        case "m2po":
            return corrections.m2po(x, mask, limits.m2po)


@dataclass(frozen=True, slots=True)
class Row:
    """Up to which lag, in optimizer steps, a batch is trained by which loss and masks; None: however old."""

    up_to: int | None
    loss: LossKind
    masks: tuple[MaskName, ...] = ()


BY_LAG: Final = (Row(4, "bypass_ppo"), Row(None, "topr"))
"""What held up best in docs/studies.md: near mu a clip around it; far from it, good samples imitated as they are, bad
ones counted by what pi would still do."""


def choose(table: Sequence[Row], lag: int) -> Row:
    """The first row that reaches a lag. Raises ValueError when the table ends before it."""
    for row in table:
        if row.up_to is None or lag <= row.up_to:
            return row
    raise ValueError(f"a batch lags {lag} steps, and the table of corrections ends at {table[-1].up_to}")
