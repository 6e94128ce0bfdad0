"""The learner of the update soak: it publishes another policy every `interval_s`, and judges what comes back."""

import json
import time
from collections import deque
from typing import ClassVar, TextIO, cast

import torch

from midflight.kernel.mail import Bus
from midflight.kernel.node import Letter, handles
from midflight.kernel.settings import Settings
from midflight.messages.control import Refused
from midflight.messages.samples import Batch, Commit, Committed, Ok, Restore, Restored, Stage, Trained
from midflight.messages.tensors import Column
from midflight.messages.weights import WeightsOk, WeightsPublish
from midflight.messages.wire import Received
from midflight.services.lease.worker import Worker
from midflight.services.model.open import open_model
from midflight.services.model.weights import retain, write_weights
from support.updates_config import UpdaterConfig
from support.updates_oracle import PIECE, Found, Oracle, Sequence

PUBLISHED, VERDICT = "published.jsonl", "verdict.json"
COMMIT_EVERY = 10
Lease = tuple[int, int]


class Updater(Worker):
    """Trains nothing. A batch counts as trained once its tokens have been looked at."""

    STAGE: ClassVar[Stage] = "train"

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        super().__init__(identity, bus)
        self.settings = settings
        self.config = cast(UpdaterConfig, settings.config)
        self.version: int | None = None
        self.step = 0
        self.found = Found()
        self.samples = self.crossing = self.unknown = 0
        self.versions: set[int] = set()
        """That a token came of."""
        self._torn: set[int] = set()
        self._asked = False
        self._due = self._ends = float("inf")
        self._over = False
        self._batches: deque[tuple[list[Lease], deque[Sequence]]] = deque()

    def start(self) -> None:
        """The base of all policies."""
        torch.set_num_threads(1)
        with self.phase("load model", 600):
            _, model = open_model(self.settings.model, self.settings.seed)
            config = self.config
            self.oracle = Oracle(model, self.settings.seed, config.noise, attends=config.attends)
        self._published: TextIO = (self.settings.run_dir / PUBLISHED).open("a")

    def work(self, now: float) -> bool:
        """Publish when it is time, look at a few sequences, leave when the time is over."""
        if self.version is None:
            self._ask_restore()
            return False
        self._over = self._over or (now >= self._ends and self.crossing >= self.config.least)
        if now >= self._due and not self._over:
            self._due = max(self._due + self.config.interval_s, now)
            self._publish()
        if self._batches:
            self._look(now)
        elif self.draining or self._over:
            self._wind_up()
        return bool(self._batches)

    def on_turn(self, now: float) -> float:
        """In time for the next version."""
        wait = super().on_turn(now)
        return wait if self._over else max(0.0, min(wait, self._due - self.bus.now()))

    def want(self) -> None:
        """One batch besides the one in hand."""
        away = self.draining or self.version is None or self._over
        room = 0 if away else max(0, 2 - len(self._batches))
        self.holding.want(room, -1 if self.version is None else self.version)

    def _ask_restore(self) -> None:
        if not self._asked:
            self._asked = True
            columns: list[Column] = [("samples", "<i8", b""), ("steps", "<i8", b"")]
            restore = Restore(step=0, tensors=[])
            self.mail.request("data", restore, 2.0, self._restored, self._unrestored, columns=columns)

    def _restored(self, received: Received) -> None:
        answer = received.message
        if isinstance(answer, Refused):
            raise RuntimeError(answer.why)
        self.version = cast(Restored, answer).version
        self._publish()
        self.want()

    def _unrestored(self, why: str) -> None:
        self._asked = False

    def _publish(self) -> None:
        """Another policy; of some one byte is changed after the digest was taken."""
        assert self.version is not None
        self.version += 1
        with self.phase("draw", 600):
            state = self.oracle.state(self.version)
        began = time.monotonic_ns()
        handle = write_weights(self.settings.shm_dir, self.version, state)
        every = self.config.torn_every
        torn = bool(every) and self.version % every == every - 1
        if torn:
            self._torn.add(self.version)
            with open(handle.path, "r+b") as file:
                file.seek(handle.bytes // 2)
                byte = file.read(1)
                file.seek(handle.bytes // 2)
                file.write(bytes([byte[0] ^ 1]))
        publish = WeightsPublish(version=self.version, step=self.step, handle=handle)
        posted = time.monotonic_ns()
        self.mail.post("data", ("weights", self.version), publish)
        retain(self.settings.shm_dir, keep=2)
        note = {"version": self.version, "began_ns": began, "ns": posted, "bytes": handle.bytes, "torn": torn}
        self._published.write(json.dumps(note) + "\n")
        self._published.flush()

    @handles(Batch)
    def _on_batch(self, message: Batch, letter: Letter) -> None:
        assert message.pieces == 1
        leases = [(part.id, part.epoch) for part in message.parts]
        fresh = [self.holding.take(sample, epoch) for sample, epoch in leases]
        if not any(fresh):
            return
        if self._ends == float("inf"):
            self._due, self._ends = self.bus.now(), self.bus.now() + self.config.seconds
        views, sequences, at = letter.received.views(), deque[Sequence](), 0
        columns = [torch.tensor(views[name].tolist()) for name in ("tokens", "mask", "logprobs", "versions")]
        for part in message.parts:
            tokens, mask, logprobs, versions = (column[at : at + part.tokens] for column in columns)
            sequences.append(Sequence(tokens, mask.bool(), logprobs, versions))
            at += part.tokens
        self._batches.append((leases, sequences))

    def _look(self, now: float) -> None:
        """At a few sequences of the oldest batch; the last of them end a step."""
        leases, waiting = self._batches[0]
        if len(waiting) == len(leases):
            self.holding.begin(sample for sample, _ in leases)
            self.want()
        piece = [waiting.popleft() for _ in range(min(PIECE, len(waiting)))]
        with self.phase("look", 600):
            self.oracle.check(piece, self.found, self.config.near)
        for one in piece:
            named = one.versions[one.mask]
            self.samples += 1
            self.crossing += int(named[0] != named[-1])
            self.versions.update(named.tolist())
            self.unknown += int((named.diff() < 0).any() or named[0] < 0 or named[-1] > cast(int, self.version))
        if waiting:
            return
        self._batches.popleft()
        self.step += 1
        self.holding.hand_in(leases, Trained(step=self.step, leases=[list(lease) for lease in leases]))
        self.progress += 1
        self.stats = {"step": self.step, "version": self.version, "tokens": self.found.tokens}
        if self.step % COMMIT_EVERY == 0:
            self._commit()
        self.want()

    def _commit(self) -> None:
        self.mail.post("data", ("commit", self.step), Commit(step=self.step, digest="0" * 32))

    def _wind_up(self) -> None:
        if self.mail.unsettled():
            return
        found = self.found
        verdict = {
            "tokens": found.tokens,
            "wrong": found.wrong,
            "compared": found.compared,
            "apart": found.apart,
            "gap": found.gap,
            "samples": self.samples,
            "crossing": self.crossing,
            "unknown": self.unknown,
            "versions": len(self.versions),
            "torn": sorted(self._torn),
            "torn_used": sorted(self._torn & self.versions),
            "published": self.version,
        }
        (self.settings.run_dir / VERDICT).write_text(json.dumps(verdict))
        self.leave(0)

    @handles(WeightsOk)
    def _on_weights_ok(self, message: WeightsOk, letter: Letter) -> None:
        self.mail.settle(("weights", message.version))

    @handles(Committed)
    def _on_committed(self, message: Committed, letter: Letter) -> None:
        self.mail.settle(("commit", message.step))

    @handles(Ok)
    def _on_ok(self, message: Ok, letter: Letter) -> None:
        assert not self.holding.answered(message), "trained on a batch that was no longer ours"
