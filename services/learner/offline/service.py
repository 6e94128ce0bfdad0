"""offline: trains a model on rows of data, evaluates, checkpoints, leaves the model in a folder, and ends the run.

The kinds sft, reward_model, dpo and distill; no rollout, reward or ledger beside it.

Takes   `knob.apply`.
Sends   the step's metrics, evaluations and checkpoints as events.
Stores  checkpoints/ (verified, the last two kept, written while it trains); at the end the trained model, in model/ or
        where `save_to` says.
Dies    any time: the next one restores the newest verified checkpoint and goes on at the row after it.
"""

import errno
import time
from typing import Any, cast

from midflight.kernel.mail import Bus
from midflight.kernel.mistake import UserMistake
from midflight.kernel.settings import Settings
from midflight.kernel.spec import live_knobs
from midflight.services.learner.knobs import optimizer_knobs
from midflight.services.learner.remarks import RefusedRows
from midflight.services.learner.training import PHASE_S, Training

from .config import OfflineConfig
from .lead import OfflineLead
from .leaving import Leaving
from .trainer import OfflineTrainer

RETRY_S = 2.0
PASSING = (errno.ENOSPC, errno.EDQUOT)
"""What a disk says that may have room later."""


class Offline(Training[OfflineConfig, OfflineTrainer]):
    """Rank 0, or the only one; the other ranks of a group do not speak."""

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        super().__init__(identity, bus, settings)
        self.config = cast(OfflineConfig, settings.config)
        self._declared = (*optimizer_knobs(self.config.optim), *live_knobs(self.config, settings.slot))
        self._leaving = Leaving(settings.run_dir, self.config.save_to)
        self._left = False
        """Whether the trained model is in its folder."""
        self._retry_at = 0.0
        self._refused = RefusedRows(self._note)

    def start(self) -> None:
        """Load the model, the newest verified checkpoint and the data."""
        self._leaving.check()
        self._load(OfflineTrainer, OfflineLead)
        self._refused.held_out(self.trainer.bad, self.trainer.held_out_rows + len(self.trainer.bad))
        self._tell_of_long_rows()
        if self.trainer.step >= self.trainer.total:
            said = f"{self.trainer.step} steps are trained, of {self.trainer.total}; raise `steps` or `epochs` to go on"
            self._note("info", f"nothing left to do: {said}")

    def work(self, now: float) -> bool:
        """One piece: an evaluation that is due, a step, or at the end what is left to write."""
        trainer = self.trainer
        if self.draining:
            return self._wind_up(now)
        if self.commits.due is not None:
            return False
        done, held_out = trainer.step >= trainer.total, self.config.evaluation
        if held_out and trainer.evaluated != trainer.step and (done or trainer.step % held_out.every == 0):
            self._evaluate()
            return True
        if done:
            return self._wind_up(now)
        self._train()
        return True

    def idle(self) -> bool:
        """What is trained is in a checkpoint."""
        return self.commits.settled

    def _train(self) -> None:
        trainer = self.trainer
        began = time.perf_counter()
        with self.phase("train", PHASE_S):
            report = trainer.train_step()
        assert trainer.examples is not None
        body = {
            **report.metrics,
            "epoch": trainer.epoch,
            "of": float(trainer.total),
            "rows/refused": float(trainer.examples.refused),
            "train_s": time.perf_counter() - began,
        }
        self.event("metrics", body, trainer.step)
        self.progress += 1
        self.stats = {"step": trainer.step, "of": trainer.total, "loss": round(report.metrics["loss"], 4)}
        self._refused.tell(trainer.examples)
        self._updates.after(trainer.step, report.metrics)
        self._tell_of_long_rows()
        if trainer.step % self.config.checkpoint_every == 0 and not self._updates.missed:
            self.commits.begin(self._besides)

    def _tell_of_long_rows(self) -> None:
        if said := self.trainer.reach.told(self.config.data):
            self._note("warning", said)

    def _evaluate(self) -> None:
        with self.phase("evaluate", PHASE_S):
            found = self.trainer.evaluate()
        body = {f"eval/{name}": value for name, value in found.items()}
        refused = len(self.trainer.bad)
        self.event("evaluation", {**body, "n": self.trainer.held_out_rows, "refused": refused}, self.trainer.step)
        self.progress += 1

    def _wind_up(self, now: float) -> bool:
        """Checkpoint what is not yet in one, leave the model when it is trained to its end, then go."""
        trainer = self.trainer
        if trainer.examples:
            self._refused.tell(trainer.examples, over=True)
        if not self.commits.finish(self._besides, now) or now < self._retry_at:
            return False
        if trainer.step >= trainer.total and not self._left and not self._leave_model():
            self._retry_at = now + RETRY_S
            self.waiting("room for the model", None)
            return False
        if not self.mail.unsettled():
            self.leave(0)
        return False

    @property
    def _besides(self) -> dict[str, Any]:
        """What a checkpoint holds besides the trainer's own."""
        return {"knobs": self._knobs}

    def _leave_model(self) -> bool:
        folder = self._leaving.folder
        try:
            with self.phase("save model", PHASE_S):
                weights = self.trainer.weights()
                self._leaving.leave(lambda beside: self.trainer.leave_model(beside, weights))
        except OSError as error:
            if error.errno not in PASSING:
                where = "`midflight models export` has it from its checkpoint"
                raise UserMistake(f"cannot leave the trained model in {folder}: {error.strerror}; {where}") from error
            self._note("warning", f"cannot write the trained model to {folder}: {error.strerror}")
            return False
        self._left = True
        self._note("info", f"the trained model is in {folder}")
        if missed := self._updates.missed:
            self._note("warning", f"its last {missed} update(s) were not applied: the gradient norm was not finite")
        return True
