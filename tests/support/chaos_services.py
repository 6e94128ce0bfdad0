"""Generator and scorer of the chaos runs: real actors under lease whose work is waiting a moment."""

import ctypes
import os
import signal
from array import array
from collections import deque
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from midflight.kernel.mail import Bus
from midflight.kernel.node import Letter, handles
from midflight.kernel.settings import Settings
from midflight.messages.samples import (
    GiveBack,
    Said,
    Score,
    ScoreJobs,
    Scores,
    Stage,
    Tickets,
    Trajectories,
    TrajectoryPart,
)
from midflight.messages.tensors import Column
from midflight.messages.weights import WeightsNew
from midflight.services.lease.worker import Worker
from support.chaos_config import MillConfig

PIECE = 64
EMPTY = memoryview(b"")
SAID = b',{"role": "tool", "content": ""}'
TOKENS = 4
"""New ones a turn."""


def turns_of(sample: int) -> int:
    """How often its episode is generated, if the ledger lets it have so many turns."""
    return 1 + sample % 3


def tokens_of(sample: int) -> list[int]:
    """The trajectory of a sample, so that a mix-up anywhere on its way is seen."""
    return [sample, sample ^ 0x5A5A, sample % 7, TOKENS]


def forget(worker: Worker) -> None:
    """Negative control: the outbox sends once and never again."""

    def never(port: str) -> None:
        return

    worker.mail.resend = never  # type: ignore[method-assign]
    worker.mail.tick = lambda: None  # type: ignore[method-assign]


@dataclass(frozen=True, slots=True)
class Item:
    """One leased sample and when its work is done."""

    id: int
    epoch: int
    solo: bool
    version: int = 0
    due: float = 0.0
    turn: int = 0
    speaks: bool = False


class Mill(Worker):
    """Takes leases, declares them begun, hands them in after `work_s`; a suspect is worked on alone."""

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        super().__init__(identity, bus)
        self.config = cast(MillConfig, settings.config)
        self.queue: deque[Item] = deque()
        self.busy: list[Item] = []
        self.version = -1
        if self.config.forgetful:
            forget(self)

    def admit(self, item: Item) -> None:
        """Queue a lease that is new to us."""
        if not self.draining and self.holding.take(item.id, item.epoch):
            self.queue.append(item)

    def want(self) -> None:
        """Free slots."""
        room = self.config.slots - len(self.queue) - len(self.busy)
        self.holding.want(0 if self.draining else room, self.version)

    def work(self, now: float) -> bool:
        """Begin what fits, hand in what is due."""
        self._begin(now)
        done = [item for item in self.busy if item.due <= now]
        if done:
            if any(item.id in self.config.poison for item in done):
                self._die()
            self.busy = [item for item in self.busy if item.due > now]
            for start in range(0, len(done), PIECE):
                self.deliver_results(done[start : start + PIECE])
            self.progress += len(done)
            self.want()
        self.stats = {"busy": len(self.busy), "resent": self.mail.counters["resent"]}
        return False

    def _die(self) -> None:
        if self.config.poison_by == "gil":
            ctypes.PyDLL(None).sleep(3600)
        while self.config.poison_by == "loop":
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    def start(self) -> None:
        """Nothing to load."""
        assert not self.config.crash, "told to crash"

    def on_turn(self, now: float) -> float:
        """Come back when the next sample is due."""
        wait = super().on_turn(now)
        return min([wait, *(max(item.due - now, 0.0) for item in self.busy)])

    def deliver_results(self, done: list[Item]) -> None:
        """Hand in one piece."""
        raise AssertionError

    def on_drain(self) -> None:
        """Give back what was not begun."""
        leases = [(item.id, item.epoch) for item in self.queue]
        self.queue.clear()
        if leases:
            back = GiveBack(stage=self.STAGE, leases=[list(lease) for lease in leases], why="drain")
            self.holding.hand_in(leases, back)
        self.want()

    def _begin(self, now: float) -> None:
        begun: list[Item] = []
        while self.queue and not any(item.solo for item in self.busy):
            if self.queue[0].solo and (self.busy or begun):
                break
            item = self.queue.popleft()
            begun.append(replace(item, version=self.version, due=now + self.config.work_s))
            if item.solo:
                break
        if begun:
            self.holding.begin(item.id for item in begun)
            self.busy += begun
            self.want()


class Generator(Mill):
    """Stage generate."""

    STAGE: ClassVar[Stage] = "generate"

    @handles(Tickets)
    def _on_tickets(self, message: Tickets, letter: Letter) -> None:
        prefix, at = letter.received.views().get("prefix", EMPTY).tolist(), 0
        for ticket in message.tickets:
            known, at = prefix[at : at + ticket.prefix_tokens], at + ticket.prefix_tokens
            assert known == tokens_of(ticket.id) * ticket.turn, f"sample {ticket.id} goes on from {known}"
            self.admit(Item(ticket.id, ticket.epoch, ticket.solo, turn=ticket.turn))

    @handles(WeightsNew)
    def _on_weights(self, message: WeightsNew, letter: Letter) -> None:
        self.version = max(self.version, message.version)
        self.want()

    def deliver_results(self, done: list[Item]) -> None:
        """Trajectories of four tokens that name their sample."""
        texts = [f"t{item.id}".encode() for item in done]
        count = len(done) * TOKENS
        parts = [
            TrajectoryPart(
                id=item.id,
                epoch=item.epoch,
                tokens=TOKENS,
                text_bytes=len(text),
                stop="stop",
                version=item.version,
                turn=item.turn,
            )
            for item, text in zip(done, texts, strict=True)
        ]
        ids = [token for item in done for token in tokens_of(item.id)]
        versions = [item.version for item in done for _ in range(TOKENS)]
        columns: list[Column] = [
            ("tokens", "<i4", array("i", ids).tobytes()),
            ("mask", "|u1", b"\1" * count),
            ("logprobs", "<f4", array("f", [0.0] * count).tobytes()),
            ("versions", "<i4", array("i", versions).tobytes()),
            ("texts", "|u1", b"".join(texts)),
        ]
        self.holding.hand_in([(item.id, item.epoch) for item in done], Trajectories(parts=parts, tensors=[]), columns)


class Scorer(Mill):
    """Stage score."""

    STAGE: ClassVar[Stage] = "score"

    @handles(ScoreJobs)
    def _on_jobs(self, message: ScoreJobs, letter: Letter) -> None:
        texts, start = letter.received.views()["texts"], 0
        for job in message.jobs:
            text, start = bytes(texts[start : start + job.text_bytes]), start + job.text_bytes
            said = b",".join([b"t%d" % job.id] * (job.turn + 1))
            assert text.replace(SAID, b"") == b"[%b]" % said, f"sample {job.id} came with the text {text!r}"
            speaks = job.interact and job.turn + 1 < turns_of(job.id)
            self.admit(Item(job.id, job.epoch, job.solo, turn=job.turn, speaks=speaks))

    def deliver_results(self, done: list[Item]) -> None:
        """What the tools say, or rewards that differ within a group."""
        spoken = Said(role="tool", content="")
        scores = [
            Score(id=item.id, epoch=item.epoch, messages=[spoken])
            if item.speaks
            else Score(id=item.id, epoch=item.epoch, rewards={"reward": float(item.id % 7)})
            for item in done
        ]
        self.holding.hand_in([(item.id, item.epoch) for item in done], Scores(scores=scores))
