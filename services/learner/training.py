"""What every service that trains has: configuration and knobs while it runs, its group of ranks, words to people."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import structlog
import torch

from midflight.kernel.actor import Actor
from midflight.kernel.mail import Bus
from midflight.kernel.mistake import UserMistake
from midflight.kernel.settings import Settings
from midflight.kernel.spec import knob_prefix, with_live, with_values
from midflight.messages.base import Scalar
from midflight.messages.knobs import KnobDeclaration
from midflight.messages.sockets import Incoming
from midflight.services.model.open import open_frame

from .base import TrainerBase
from .checkpoints.commits import Commits, State
from .finite import Updates
from .group.gathering import gathered
from .group.group import Group
from .group.meeting import Meeting
from .group.tensor_parallel import must_cut
from .training_config import TrainingConfig

PHASE_S = 600.0
"""Longest silence while a model is loaded, a step is computed, weights are gathered."""
JOIN_S = 30.0
"""Longest silence while other hosts are waited for; each look at them ends it."""
C = TypeVar("C", bound=TrainingConfig)
T = TypeVar("T", bound=TrainerBase[Any])


class Training(Actor, Generic[C, T]):
    """Rank 0, or the only one; the other ranks of a group do not speak."""

    config: C
    trainer: T
    commits: Commits

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        super().__init__(identity, bus)
        self.run_settings = settings
        self._declared: tuple[KnobDeclaration, ...] = ()
        self._knobs: dict[str, float] = {}
        self._fields: dict[str, Scalar] = {}
        """Values set in live fields of the configuration."""
        self._group: Group[T] | None = None
        self._log = structlog.get_logger()

    def _load(self, alone: type[T], lead: type[T]) -> None:
        """The model, the newest verified checkpoint and the data, by the trainer that these classes make: `Group`'s.

        Raises UserMistake.
        """
        self._take_fields()
        torch.set_num_threads(self.config.threads)
        settings, meeting = self.run_settings, self._meeting()
        with self.phase("load model", PHASE_S):
            root = settings.run_dir / "checkpoints"
            root.mkdir(exist_ok=True)
            try:
                self._group = Group(self.config, settings, root, alone, lead, meeting)
                self.trainer = self._group.trainer
                loaded = self.trainer.restore()
                self.trainer.read_examples()
            except ValueError as error:
                raise UserMistake(str(error)) from error
        for name, value in self._knobs.items():
            self.trainer.turn_knob(name, value)
        self.commits = Commits(self.trainer, self, self._note, loaded.digest)
        self._updates = Updates(self._note, self.trainer.broken)
        self._log.info(
            f"{self.config.kind} loaded", source=loaded.name, stage=self.trainer.stage, step=self.trainer.step
        )
        for why in loaded.skipped:
            self._note("warning", f"checkpoint passed over, going on from {loaded.name}: {why}")

    def knobs(self) -> tuple[KnobDeclaration, ...]:
        """What can be steered while it trains."""
        return self._declared

    def watches(self) -> dict[int, Callable[[], None]]:
        """Besides an actor's own: what the group of ranks has to say."""
        return super().watches() | (self._group.watches() if self._group else {})

    def beat(self) -> None:
        """Also tells which processes the ranks are."""
        if self._group and (places := self._group.places):
            self.stats["ranks"] = places
        super().beat()

    def on_turn(self, now: float) -> float:
        """Also in a pause, a checkpoint may have come to be on disk."""
        if self.ready and (saved := self.commits.tend(now)):
            self._written(saved)
        return super().on_turn(now)

    def _written(self, saved: State) -> None:
        """A checkpoint is on disk."""

    def close(self) -> None:
        """The other ranks leave with this one."""
        if self._group:
            self._group.close(over=self.exit_code == 0 and not self.draining)

    def turn(self, now: float) -> float:
        """Also names the rank that a collective failed for."""
        with self._blaming():
            return super().turn(now)

    def deliver(self, port: str, incoming: Incoming) -> None:
        """Also names the rank that a collective failed for."""
        with self._blaming():
            super().deliver(port, incoming)

    @contextmanager
    def _blaming(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if self._group and (why := self._group.explained(error, self.beat)):
                raise RuntimeError(why) from error
            raise

    def _meeting(self) -> Meeting | None:
        """The ranks of other hosts, waited for.

        Raises UserMistake when they do not come, and before anybody is waited for when the model cannot be cut.
        """
        self._must_cut()
        said = ""

        def tell(lacking: str, ticket: Path) -> None:
            nonlocal said
            if lacking != said:
                said = lacking
                self._note(
                    "info", f"waits for {lacking}; on each of them run: midflight join {ticket} (or a copy of it)"
                )
            self.beat()

        with self.phase("other hosts", JOIN_S):
            return gathered(self.config, self.run_settings, tell)

    def _must_cut(self) -> None:
        if (count := self.config.tp_size) > 1:
            _, frame = open_frame(self.run_settings.model)
            try:
                must_cut(frame, count)
            except ValueError as error:
                raise UserMistake(str(error)) from error

    def apply_knob(self, name: str, value: Scalar) -> int:
        """Messages are handled between steps, so a new value holds for the whole next step."""
        field = name.removeprefix(knob_prefix(self.run_settings.slot))
        if field == name:
            self._knobs[name] = float(cast(float, value))
            return self.trainer.turn_knob(name, self._knobs[name]) if self.ready else 0
        if not self.ready:
            self._fields[field] = value
            return 0
        if field == "steps" and cast(int, value) <= self.trainer.step:
            raise ValueError(f"{self.trainer.step} steps are trained already: `midflight down` ends the run here")
        config = with_live(self.config, field, value)
        step = self.trainer.reconfigure(config)
        self.config = config
        self._reconfigured(field)
        return step

    def _reconfigured(self, field: str) -> None:
        """A live field has another value."""

    def _take_fields(self) -> None:
        """What was set while a former process ran; it was accepted one by one, and holds together."""
        try:
            self.config = with_values(self.config, self._fields)
        except ValueError as error:
            self._note("warning", f"values set before are not in force, for they do not fit this topology: {error}")

    def _note(self, level: str, text: str) -> None:
        """Say something to people, in the log and as an event."""
        (self._log.warning if level == "warning" else self._log.info)(text)
        self.event("note", {"level": level, "text": text[:900]})
