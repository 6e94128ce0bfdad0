"""Numbers that are not finite: weights that nobody gets, updates that were not applied, and when that ends a run."""

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from midflight.kernel.mistake import UserMistake

from .checkpoints.slices import local

MOST: Final = 10
"""Updates in a row that may come to nothing."""
REMEDY: Final = (
    "look at the rows or rewards of the last steps, and lower `optim.lr`; `up --resume` goes on from the newest "
    "checkpoint"
)


@torch.no_grad()
def broken(tensors: Mapping[str, Tensor]) -> str:
    """The first that has NaN or infinity in this rank's part; empty when none has.

    One pass, and one look at what it found: a device is waited for once. Sums may overflow: they say where to look.
    """
    own = {name: part for name, tensor in tensors.items() if (part := local(tensor)).is_floating_point()}
    if not own or torch.stack([part.sum().float() for part in own.values()]).isfinite().all():
        return ""
    return next((name for name, part in own.items() if not part.isfinite().all()), "")


class Updates:
    """Which updates of a trainer were applied. note(level, text) takes words for people; broken: as above, of its
    weights."""

    def __init__(self, note: Callable[[str, str], None], broken: Callable[[], str]) -> None:
        self._note, self._broken = note, broken
        self.missed = 0
        """Not applied, in a row, up to the newest; weights that only give such are not worth a checkpoint."""
        self._told = False

    def after(self, step: int, metrics: Mapping[str, float], of_rows: bool = True) -> None:
        """A step was made. of_rows: its loss is of rows, and not of rewards, which may be as large as they like.

        Raises UserMistake when training comes to nothing.
        """
        skipped = int(metrics["skipped_updates"])
        applied = int(metrics.get("updates", 1 - skipped))
        self.missed = self.missed + skipped if skipped and not applied else 0
        loss = metrics["loss"]
        if of_rows and not math.isfinite(loss):
            raise UserMistake(f"step {step}: the loss is not finite ({loss}){self._where()}: {REMEDY}")
        if self.missed >= MOST:
            why = f"the gradient norm was not finite in the last {self.missed} updates, and none of them was applied"
            raise UserMistake(f"step {step}: {why}{self._where()}: {REMEDY}")
        if skipped and not self._told:
            self._told = True
            why = f"the gradient norm is not finite, so {skipped} update(s) of this step were not applied"
            self._note("warning", f"step {step}: {why}; `skipped_updates` counts them, {MOST} in a row end the run")

    def _where(self) -> str:
        name = self._broken()
        return f", and {name} has NaN or infinity, as it came or since an update" if name else ""
