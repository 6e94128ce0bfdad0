"""A trainer's checkpoints as its service sees them: begun between two steps, written while it trains, then told.

What follows a checkpoint (a learner's ledger lets go of trajectories) follows its rename, however long that takes.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from midflight.kernel.actor import Actor
from midflight.services.learner.base import TrainerBase

from .checkpoint import CheckpointError
from .saving import WRITE_S

COPY_S = 600.0
RETRY_S = 2.0
WRITTEN = "checkpoint on disk"
ROOM = "room for a checkpoint"


@dataclass(frozen=True, slots=True)
class State:
    """What a checkpoint holds. mark, stage: see `TrainerBase`."""

    mark: tuple[int, ...]
    step: int
    stage: str
    digest: str = ""


class Commits:
    """Of one trainer, in the name of `actor`. loaded: digest of the checkpoint it goes on from, empty for none."""

    def __init__(self, trainer: TrainerBase[Any], actor: Actor, note: Callable[[str, str], None], loaded: str) -> None:
        self._trainer, self._actor, self._note = trainer, actor, note
        self.saved: State | None = replace(self._now, digest=loaded) if loaded else None
        """The newest that is on disk."""
        self.writing: State | None = None
        self.due: Mapping[str, Any] | None = None
        """To be begun, with this, as soon as none is being written; nothing is trained before."""
        self._until = self._retry_at = 0.0
        self._drain = ExitStack()

    def begin(self, extra: Mapping[str, Any]) -> None:
        """Copy what is to be saved, and have it written; one at a time."""
        if self.writing:
            self.due = extra
            self._show()
            return
        with self._actor.phase("checkpoint", COPY_S):
            self._trainer.save(extra)
        self.due, self.writing, self._until = None, self._now, self._actor.bus.now() + WRITE_S

    def tend(self, now: float) -> State | None:
        """What is newly on disk, once; begins the next one if it waited for that.

        A disk that refuses costs no more than what a crash would. Raises RuntimeError when one does not answer.
        """
        if self.writing is None or (self._trainer.saver.busy and now < self._until):
            return None
        written, self.writing = self.writing, None
        self._drain.close()
        self._actor.waited(WRITTEN)
        try:
            manifest = self._trainer.saver.take(0.0)
        except CheckpointError as error:
            self._note("warning", f"{error}; going on without")
            self._retry_at = now + RETRY_S
            saved = None
        else:
            assert manifest is not None
            self._actor.waited(ROOM)
            saved = self.saved = replace(written, digest=manifest.digest)
            self._actor.event("checkpoint", {"step": saved.step, "stage": saved.stage, "digest": saved.digest})
        if self.due is not None:
            self.begin(self.due)
        return saved

    def finish(self, extra: Mapping[str, Any], now: float) -> bool:
        """Work towards everything trained being on disk; -> whether it is.

        A drain gives this as long as a phase has.
        """
        if self.writing:
            self._show()
            if self._actor.draining and not self._actor.in_phase:
                self._drain.enter_context(self._actor.phase(WRITTEN, WRITE_S))
            return False
        if self.settled:
            return True
        if now >= self._retry_at:
            self.begin(extra)
        else:
            self._actor.waiting(ROOM, None)
        return False

    @property
    def settled(self) -> bool:
        """Whether everything trained is on disk."""
        mark = self._trainer.mark
        return self.writing is None and (not any(mark) or (self.saved is not None and mark == self.saved.mark))

    @property
    def _now(self) -> State:
        trainer = self._trainer
        return State(trainer.mark, trainer.step, trainer.stage)

    def _show(self) -> None:
        self._actor.waiting(WRITTEN, max(0.0, self._until - self._actor.bus.now()))
