"""The consumer of the chaos runs: a learner whose weights are rows, so that lost and double effects can be counted.

Between checkpoints its effects are in memory only, as a learner's are; a checkpoint is one transaction that writes them
together with the step it stands at.
"""

import hashlib
import os
import signal
import sqlite3
from array import array
from pathlib import Path
from typing import ClassVar, cast

from midflight.kernel.mail import Bus
from midflight.kernel.node import Letter, handles
from midflight.kernel.settings import Settings
from midflight.messages.control import Refused
from midflight.messages.samples import (
    Batch,
    Commit,
    Committed,
    Ok,
    Restore,
    Restored,
    Stage,
    Trained,
)
from midflight.messages.tensors import Column
from midflight.messages.weights import Handle, WeightsOk, WeightsPublish
from midflight.messages.wire import Received
from midflight.services.lease.worker import Worker
from support.chaos_config import ConsumerConfig
from support.chaos_services import TOKENS, tokens_of, turns_of

Lease = tuple[int, int]
TABLES = """
create table if not exists effect(sample integer not null, step integer not null);
create table if not exists mark(
    id integer primary key check (id = 0), step integer not null, committed integer not null);
insert or ignore into mark values(0, 0, 0);
"""


class Effects:
    """effects.sqlite: what was trained, and up to where."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.executescript(TABLES)
        self.step, self.committed = self.db.execute("select step, committed from mark").fetchone()
        rows = self.db.execute("select sample, step from effect where step > ?", (self.committed,))
        self.recent: dict[int, int] = dict(rows)
        """Samples whose `trained` may not have arrived."""
        self.pending: list[tuple[int, int]] = []

    def take(self, samples: list[int]) -> None:
        """One step: the effect, in memory."""
        self.step += 1
        self.pending += [(sample, self.step) for sample in samples]
        self.recent.update((sample, self.step) for sample in samples)

    def save(self) -> None:
        """The checkpoint."""
        self.db.execute("begin immediate")
        self.db.executemany("insert into effect values(?, ?)", self.pending)
        self.db.execute("update mark set step = ?, committed = ?", (self.step, self.committed))
        self.db.execute("commit")
        self.pending.clear()

    def closed(self, step: int) -> None:
        """The ledger has closed everything up to `step`."""
        self.committed = max(self.committed, step)
        self.recent = {sample: at for sample, at in self.recent.items() if at > step}


class Consumer(Worker):
    """Follows the real learner message by message."""

    STAGE: ClassVar[Stage] = "train"

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        super().__init__(identity, bus)
        self.settings = settings
        self.config = cast(ConsumerConfig, settings.config)
        self.version: int | None = None
        self.pieces: dict[int, dict[int, list[Lease]]] = {}
        self.whole: list[tuple[int, list[Lease]]] = []
        self._asked = False
        self._next_step = 0.0
        self._late = self.config.late and identity.endswith("#1")
        self._owed: tuple[int, int, list[Lease]] | None = None
        """Batch, step and leases of the result kept back until the batch comes again."""
        self._sent = False

    def start(self) -> None:
        """Load the checkpoint."""
        self.effects = Effects(self.settings.run_dir / "effects.sqlite")

    def work(self, now: float) -> bool:
        """Restore, then train; leave when no further batch will come."""
        if self.version is None and not self.draining:
            self._ask_restore()
            return False
        if self.draining or (self.holding.exhausted and not self.holding.held):
            return self._wind_up()
        if self._owed:
            if not self._sent and any(batch == self._owed[0] for batch, _ in self.whole):
                self._sent = True
                self._trained(*self._owed[1:])
        elif self.whole and now >= self._next_step:
            self._next_step = now + self.config.step_s
            self._step(*self.whole.pop(0))
        return False

    def want(self) -> None:
        """One batch in hand besides the one in training."""
        room = 1 + (self._owed is not None) - len(self.whole) - len(self.pieces)
        away = self.draining or self.version is None
        self.holding.want(0 if away else max(room, 0), -1 if self.version is None else self.version)

    def idle(self) -> bool:
        """Batches still held at a drain return to the ledger when we leave."""
        return not self.effects.pending

    def _ask_restore(self) -> None:
        if self._asked or (self.config.dies_last and not self.holding.boot):
            return
        self._asked = True
        recent = self.effects.recent
        columns: list[Column] = [
            ("samples", "<i8", array("q", recent.keys()).tobytes()),
            ("steps", "<i8", array("q", recent.values()).tobytes()),
        ]
        restore = Restore(step=self.effects.step, tensors=[])
        self.mail.request("data", restore, 2.0, self._restored, self._unrestored, columns=columns)

    def _restored(self, received: Received) -> None:
        answer = received.message
        if isinstance(answer, Refused):
            raise RuntimeError(answer.why)
        self.version = cast(Restored, answer).version
        self.holding.exhausted = False  # what was said before does not know of the samples re-opened
        self._publish()
        self._commit()
        self.want()

    def _unrestored(self, why: str) -> None:
        self._asked = False

    @handles(Batch)
    def _on_batch(self, message: Batch, letter: Letter) -> None:
        leases = [(part.id, part.epoch) for part in message.parts]
        tokens, at = letter.received.views()["tokens"].tolist(), 0
        for part in message.parts:
            turns = part.tokens // TOKENS
            assert turns in (1, turns_of(part.id)), f"sample {part.id} came after {turns} turns"
            own, at = tokens[at : at + part.tokens], at + part.tokens
            assert own == tokens_of(part.id) * turns, f"sample {part.id} came with another's tokens"
        fresh = [self.holding.take(sample, epoch) for sample, epoch in leases]
        if not any(fresh):
            return
        pieces = self.pieces.setdefault(message.batch, {})
        pieces[message.piece] = leases
        if len(pieces) == message.pieces:
            del self.pieces[message.batch]
            self.whole.append((message.batch, [lease for piece in pieces.values() for lease in piece]))

    def _step(self, batch: int, leases: list[Lease]) -> None:
        self.holding.begin(sample for sample, _ in leases)
        self.want()
        self.effects.take([sample for sample, _ in leases])
        self._publish()
        step = self.effects.step
        if self._late:
            self._late, self._owed = False, (batch, step, leases)
            for sample, _ in leases:
                self.holding.drop(sample)
            return
        self._trained(step, leases)
        self.event("metrics", {"samples": len(leases)}, step)
        self.progress += 1
        self.stats = {"step": step}
        if step % self.config.checkpoint_every == 0:
            self._checkpoint()

    def _trained(self, step: int, leases: list[Lease]) -> None:
        self.holding.hand_in(leases, Trained(step=step, leases=[list(lease) for lease in leases]))

    def _publish(self) -> None:
        assert self.version is not None
        self.version += 1
        path = self.settings.shm_dir / "w"
        path.write_text(str(self.version))
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        handle = Handle(kind="shm", path=str(path), bytes=path.stat().st_size, digest=digest)
        message = WeightsPublish(version=self.version, step=self.effects.step, handle=handle)
        self.mail.post("data", ("weights", self.version), message)

    def _checkpoint(self) -> None:
        self.effects.save()
        self._commit()

    def _commit(self) -> None:
        step = self.effects.step
        self.mail.post("data", ("commit", step), Commit(step=step, digest="0" * 32))

    def _wind_up(self) -> bool:
        if self.config.dies_last and self.identity.endswith("#1"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.effects.pending:
            self._checkpoint()
        if not self.mail.unsettled():
            self.leave(0)
        return False

    @handles(WeightsOk)
    def _on_weights_ok(self, message: WeightsOk, letter: Letter) -> None:
        self.mail.settle(("weights", message.version))

    @handles(Committed)
    def _on_committed(self, message: Committed, letter: Letter) -> None:
        self.mail.settle(("commit", message.step))
        self.effects.closed(message.step)

    @handles(Ok)
    def _on_ok(self, message: Ok, letter: Letter) -> None:
        if self.holding.answered(message):
            self.leave(1)
        if self._owed and self._owed[2][0] in [(sample, epoch) for sample, epoch in message.done]:
            self._owed = None
