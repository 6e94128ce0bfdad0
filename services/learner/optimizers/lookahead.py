"""Lookahead: slow weights that follow the optimizer's (Zhang 2019, arXiv 1907.08610, algorithm 1)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .settings import LookaheadSettings


class Lookahead:
    """Every k updates: slow += alpha * (fast - slow), fast = slow. The optimizer's own moments are kept.

    The slow weights begin as the weights before the first update. slow: by parameter, cut as it is. since: updates
    since they moved.
    """

    def __init__(self, parameters: Iterable[Tensor], settings: LookaheadSettings) -> None:
        self.parameters, self.settings = list(parameters), settings
        self.slow: dict[Tensor, Tensor] = {}
        self.since = 0

    @torch.no_grad()
    def before(self) -> None:
        """An update is coming."""
        if not self.slow:
            self.slow = {p: p.detach().clone() for p in self.parameters}

    @torch.no_grad()
    def after(self) -> None:
        """An update was made."""
        self.since += 1
        if self.since < self.settings.k:
            return
        self.since = 0
        for p, slow in self.slow.items():
            slow.add_(p - slow, alpha=self.settings.alpha)
            p.copy_(slow)
