"""learner: trains on batches, publishes weights, checkpoints.

Takes   `batch` (a whole batch under lease, in pieces), `knob.apply`, `restored`, `weights.ok`, `ok`.
Sends   `restore` at its start, `weights.publish` after every step, `trained`, `commit` after a durable checkpoint, and
        the step's metrics as an event.
Stores  checkpoints/ (verified, the last two kept, written while it trains); weights in shared memory (the last two
        versions); samples/ (a few groups of each of the newest steps, for people).
Dies    any time: the next one restores the newest verified checkpoint, and the ledger re-opens what was trained after
        it. A batch that the ledger no longer grants to this learner ends it, so that no sample counts twice.
"""

import time
from array import array
from typing import Any, ClassVar, cast

from midflight.kernel.mail import Bus
from midflight.kernel.mistake import UserMistake
from midflight.kernel.node import Letter, handles
from midflight.kernel.settings import Settings
from midflight.messages.control import Refused
from midflight.messages.samples import Batch, Commit, Committed, Ok, Restore, Restored, Stage, Trained
from midflight.messages.tensors import Column
from midflight.messages.weights import WeightsOk, WeightsPublish
from midflight.messages.wire import Received
from midflight.services.lease.worker import Worker
from midflight.services.model.open import end_ids
from midflight.services.model.weights import retain, write_weights

from .archive import Archive
from .batches import Assembly, lacking, objective_means, rollout_batch, turn_metrics
from .checkpoints.commits import State
from .config import LearnerConfig, completed
from .group.lead import Lead
from .knobs import declarations
from .remarks import RefusedRows, Remarks
from .trainer import Trainer
from .training import PHASE_S, Training

ANSWER_S = 5.0
KNOWN_VERSIONS = 256


class Learner(Training[LearnerConfig, Trainer], Worker):
    """Rank 0, or the only one; the other ranks of a group do not speak."""

    STAGE: ClassVar[Stage] = "train"

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        super().__init__(identity, bus, settings)
        self._rollout = settings.slot_of_kind("rollout")
        self.config = completed(cast(LearnerConfig, settings.config), self._rollout)
        self.version: int | None = None
        """Newest version published; None until the ledger has told where to go on."""
        self.steps: dict[int, int] = {}
        """Policy version -> the step it was published at; after a restore versions go on and steps go back."""
        self.assembling: dict[int, Assembly] = {}
        self.whole: list[Assembly] = []
        self._asked = False
        self._declared = declarations(self.config, settings.slot)
        self._waited = bus.now()
        self._finish_by: float | None = None
        self._remarks = Remarks(self._note)
        self._refused = RefusedRows(self._note)

    def start(self) -> None:
        """Load the model and the newest verified checkpoint."""
        self._load(Trainer, Lead)
        self.archive = self._open_archive()
        self.stats = {"step": self.trainer.step}
        if self.trainer.step >= self.config.steps:
            whose = ", as a knob said while it ran" if "steps" in self._fields else "; raise it to go on"
            self._note(
                "info",
                f"nothing left to do: {self.trainer.step} steps are trained, `steps` is {self.config.steps}{whose}",
            )

    def _open_archive(self) -> Archive:
        trainer = self.trainer
        ends = end_ids(trainer.tokenizer, trainer.policy.lm) | set(self._rollout.get("stop_token_ids") or ())
        archive = Archive(self.config.samples, self.run_settings.run_dir, trainer.tokenizer, ends)
        archive.go_on_from(trainer.step)
        return archive

    def _reconfigured(self, field: str) -> None:
        self.archive.config = self.config.samples
        if field in ("steps", "last_evaluation_s"):
            self._finish_by = None
            self.waited("last evaluation")

    def work(self, now: float) -> bool:
        """The warm start, then: restore, publish, train."""
        if self.draining:
            return self._wind_up()
        if self.commits.due is not None:
            return False
        if self.trainer.stage == "sft":
            self._sft_step()
            return True
        if self.version is None:
            self._ask_restore()
            return False
        used_up = self.holding.exhausted and not self.holding.held
        if self.trainer.step >= self.config.steps or used_up:
            return self._wind_up() if self._evaluated(now) else False
        if self.whole:
            self._rl_step(self.whole.pop(0))
            return True
        return False

    def _evaluated(self, now: float) -> bool:
        """Whether the last policy's evaluation round, if one is due, is finished; waited for, but not for ever."""
        if self._finish_by is None:
            if self.trainer.step < self.config.steps:
                self._used_up()
            self._finish_by = now + self.config.last_evaluation_s
            self.waiting("last evaluation", self.config.last_evaluation_s)
            self.want()
        told = self.holding.version == self.version and not self.mail.unsettled("data")
        return now >= self._finish_by or (told and not self.holding.evaluating)

    def _used_up(self) -> None:
        """The ledger has no prompt left. Raises UserMistake when none was of use."""
        if not self.trainer.step:
            why = "not one batch could be trained on: `midflight ledger` tells how many samples were refused, and why"
            raise UserMistake(f"the prompts are used up, and {why}")
        self._note(
            "info", f"the prompts are used up (ledger.epochs) at step {self.trainer.step} of {self.config.steps}"
        )

    def want(self) -> None:
        """One batch in hand besides the one in training."""
        done = self.draining or self.version is None or self.trainer.step + len(self.whole) >= self.config.steps
        held = len(self.whole) + len(self.assembling)
        self.holding.want(
            0 if done else max(0, self.config.prefetch - held), self.version if self.version is not None else -1
        )

    def lacks_work(self) -> bool:
        """In the RL stage, with no batch and steps to go."""
        return super().lacks_work() and self.version is not None and self.trainer.step < self.config.steps

    def idle(self) -> bool:
        """Batches still held at a drain return to the ledger when we leave; a checkpoint is waited for."""
        return self.commits.writing is None

    def _sft_step(self) -> None:
        trainer, examples = self.trainer, self.trainer.examples
        with self.phase("warm start", PHASE_S):
            report = trainer.sft_step()
        self.progress += 1
        sft = self.config.sft
        assert sft is not None
        self.stats = {"sft_step": trainer.sft_done, "loss": round(report.metrics["loss"], 4)}
        self._updates.after(trainer.sft_done, report.metrics)
        if trainer.sft_done % 20 == 0 or trainer.stage == "rl":
            refused = {"rows/refused": trainer.sft_refused}
            self.event("sft", {**report.metrics, **refused, "of": sft.steps}, trainer.sft_done)
        if trainer.stage == "rl" or (trainer.sft_done % sft.checkpoint_every == 0 and not self._updates.missed):
            self.commits.begin(self._besides)
        if examples:
            self._refused.tell(examples, over=trainer.stage == "rl")

    def _ask_restore(self) -> None:
        """Tell the ledger where we stand; it says which version comes next."""
        if not self._asked:
            self._asked = True
            recent = self.trainer.recent
            columns: list[Column] = [
                ("samples", "<i8", array("q", recent.keys()).tobytes()),
                ("steps", "<i8", array("q", recent.values()).tobytes()),
            ]
            self.mail.request(
                "data",
                Restore(step=self.trainer.step, longest=self.config.longest, tensors=[]),
                ANSWER_S,
                self._restored,
                self._unrestored,
                name="restore",
                columns=columns,
            )

    def _restored(self, received: Received) -> None:
        answer = received.message
        if isinstance(answer, Restored):
            self.version = answer.version
            self.steps = {int(version): int(step) for version, step in answer.steps}
            self.holding.exhausted = False  # what was said before does not know of the samples re-opened
            self._log.info("restored", step=answer.step, reopened=answer.reopened, version=answer.version)
            self._publish()
            if (saved := self.commits.saved) and saved.mark == self.trainer.mark:
                self._commit(saved)
            self.want()
        elif isinstance(answer, Refused):
            raise UserMistake(f"the ledger cannot go on from this checkpoint: {answer.why}")

    def _unrestored(self, why: str) -> None:
        self._asked = False

    @handles(Batch)
    def _on_batch(self, message: Batch, letter: Letter) -> None:
        assembly = self.assembling.get(message.batch)
        leases = {(part.id, part.epoch) for part in message.parts}
        fresh = [self.holding.take(sample, epoch) for sample, epoch in sorted(leases)]
        if not any(fresh):
            return
        if assembly is None:
            assembly = self.assembling[message.batch] = Assembly(message.batch, message.pieces)
            self.whole = [other for other in self.whole if other.number != message.batch]  # granted anew: replaced
        if assembly.add(message, letter.received.views()):
            del self.assembling[message.batch]
            self.whole.append(assembly)

    @handles(WeightsOk)
    def _on_weights_ok(self, message: WeightsOk, letter: Letter) -> None:
        self.mail.settle(("weights", message.version))

    @handles(Ok)
    def _on_ok(self, message: Ok, letter: Letter) -> None:
        if self.holding.answered(message):
            self._log.error("trained on a batch that was no longer ours: back to the last checkpoint")
            self.leave(1)

    def _rl_step(self, assembly: Assembly) -> None:
        assert self.version is not None
        trainer = self.trainer
        waited = self.bus.now() - self._waited
        parts = assembly.parts
        self.holding.begin(part.id for part, _ in parts)
        self.want()
        self._remarks.weights(self.config.objective_weights, {name for part, _ in parts for name in part.rewards})
        self._remarks.lacking(lacking(parts, trainer.objective_weights))
        began = time.perf_counter()
        batch = rollout_batch(parts, trainer.objective_weights, self.steps, trainer.step)
        watched = self.archive.watch(batch, trainer.step + 1, trainer.reference is not None)
        with self.phase("train", PHASE_S):
            report = trainer.rl_step(batch, watched)
        seconds = time.perf_counter() - began
        trained = self.version
        self._publish(last=trainer.step >= self.config.steps)
        leases = assembly.leases
        self.trainer.recent.update((sample, trainer.step) for sample, _ in leases)
        self.holding.hand_in(leases, Trained(step=trainer.step, leases=[list(lease) for lease in leases]))
        body = {
            **report.metrics,
            **objective_means(parts, trainer.objective_weights),
            **turn_metrics(parts),
            "train_s": seconds,
            "wait_s": waited,
            "version": self.version,
        }
        self.event("metrics", body, trainer.step)
        self._updates.after(trainer.step, report.metrics, of_rows=False)
        self._remarks.gap(report.metrics, self.config.logprob_gap_alarm)
        if watched and (why := self.archive.keep(watched, batch, parts, trainer.step, trained)):
            self._note("warning", why)
        self.progress += 1
        self.stats = {
            "step": trainer.step,
            "reward": round(report.metrics["reward_mean"], 4),
            "version": self.version,
        }
        due = trainer.step % self.config.checkpoint_every == 0 and not self._updates.missed
        if due or trainer.step >= self.config.steps:
            self.commits.begin(self._besides)
        self._waited = self.bus.now()

    def _publish(self, last: bool = False) -> None:
        assert self.version is not None
        self.version += 1
        self.steps[self.version] = self.trainer.step
        for old in sorted(self.steps)[:-KNOWN_VERSIONS]:
            del self.steps[old]
        with self.phase("publish", PHASE_S):
            handle = write_weights(self.run_settings.shm_dir, self.version, self.trainer.weights())
        self.mail.post(
            "data",
            ("weights", self.version),
            WeightsPublish(version=self.version, step=self.trainer.step, handle=handle, last=last),
        )
        retain(self.run_settings.shm_dir, keep=2)

    def _written(self, saved: State) -> None:
        if self.version is not None:
            self._commit(saved)

    @property
    def _besides(self) -> dict[str, Any]:
        """What a checkpoint holds besides the trainer's own."""
        return {"version": self.version, "knobs": self._knobs}

    def _commit(self, saved: State) -> None:
        """What is in a durable checkpoint needs no payload any more."""
        self.mail.post("data", ("commit", saved.step), Commit(step=saved.step, digest=saved.digest))

    @handles(Committed)
    def _on_committed(self, message: Committed, letter: Letter) -> None:
        self.mail.settle(("commit", message.step))
        recent = self.trainer.recent
        self.trainer.recent = {sample: step for sample, step in recent.items() if step > message.step}

    def _wind_up(self) -> bool:
        """Checkpoint what is not yet in one, then leave once everything is acknowledged."""
        if self.commits.finish(self._besides, self.bus.now()) and not self.mail.unsettled():
            self.leave(0)
        return False
