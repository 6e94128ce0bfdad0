"""The ranks that train together, as rank 0's process has them: alone, started here, or met where torchrun says.

Any rank's end is the end of the group: rank 0 leaves with the reason, and the next generation begins from the newest
checkpoint, at a port of its own.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from midflight.kernel.settings import Settings
from midflight.services.learner.base import C, TrainerBase

from .launch import Launched
from .lead import Leading
from .mesh import Mesh

CLOSE_S = 2.0
T = TypeVar("T", bound=TrainerBase[Any])


class Group(Generic[T]):
    """A `trainer` that moves all ranks, and the processes of those that are not this one.

    alone, lead: its class in a process by itself, and as rank 0 of several.
    Raises ValueError when model and configuration do not go together, RuntimeError when the others do not come.
    """

    def __init__(self, config: C, settings: Settings, root: Path, alone: type[T], lead: type[T]) -> None:
        self._others: Launched | None = None
        if config.ranks > 1:
            self._others = Launched(config.ranks, settings.run_dir / "logs", settings.name)
            os.environ.update(self._others.contract | {"RANK": "0", "LOCAL_RANK": "0"})
        mesh = Mesh.configured(config)
        make = alone if mesh.orders is None else lead
        self.trainer = make(config, settings.model, settings.seed, root, mesh)
        if mesh.orders is not None:
            self.trainer.reconfigure(config)  # fields set while the run went on are not in the others' files

    def watches(self) -> dict[int, Callable[[], None]]:
        """Descriptors that are readable when a rank has ended, or a save."""
        saver = self.trainer.saver
        ends = dict.fromkeys(self._others.handles.values(), self._ended) if self._others else {}
        return {**ends, saver.done: saver.heard}

    def _ended(self) -> None:
        """Between steps; in a step the collective in which it is missed says so first."""
        assert self._others is not None
        if why := self._others.ended():
            raise RuntimeError(f"{why}; the group begins again from the newest checkpoint")

    def close(self) -> None:
        """All leave; a checkpoint that is almost on disk gets there."""
        self.trainer.profile.close()
        with contextlib.suppress(RuntimeError):
            self.trainer.saver.settle(CLOSE_S)
        if isinstance(self.trainer, Leading):
            self.trainer.leave()
        if self._others:
            self._others.close()
