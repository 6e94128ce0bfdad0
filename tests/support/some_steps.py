"""Random transitions in float64 with every kind of end inside."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from midflight.services.algorithms.steps import Steps


def some_steps(seed: int, rows: int = 3, length: int = 23, ends: bool = True) -> Steps:
    """[rows, length] of noise; with `ends`, one step in six terminated and one in six truncated."""
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(rows, length, generator=generator, dtype=torch.float64)

    kind = torch.rand(rows, length, generator=generator)
    terminated, truncated = (kind < 1 / 6, (kind > 5 / 6)) if ends else (kind < 0, kind < 0)
    values, beyond = noise(), noise()
    after = torch.where(terminated | truncated, beyond, torch.cat([values[:, 1:], beyond[:, -1:]], dim=1))
    return Steps.of(noise(), values, after, terminated, truncated, 0.5 * noise())


def by_row(steps: Steps, slow: Callable[..., Any], *fields: str, **numbers: float) -> Tensor:
    """A slow estimator of every row: its arguments are fields of the steps (`rho` is the ratio), then numbers."""
    columns = {name: (steps.ratio if name == "rho" else getattr(steps, name)).tolist() for name in fields}
    rows = [slow(*(columns[name][row] for name in fields), **numbers) for row in range(len(steps.rewards))]
    return torch.tensor(rows, dtype=torch.float64)
