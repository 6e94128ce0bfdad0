"""The ledger's counter: one handler a message kind, a few calls on the book each, and a reply after the commit.

Who may say what: workers answer for leases they hold; only a learner restores, trains, commits and publishes, and only
the learner that restored last. Anyone may ask for the balance.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from midflight.kernel.actor import Actor
from midflight.kernel.node import Letter, handles
from midflight.messages.base import Message, Scalar
from midflight.messages.control import PeerDown, Refused
from midflight.messages.samples import (
    Commit,
    Committed,
    GiveBack,
    LedgerGet,
    Ok,
    Refuse,
    Restore,
    Restored,
    Score,
    Scores,
    Stage,
    Trained,
    Trajectories,
    TrajectoryPart,
    Want,
    WantOk,
)
from midflight.messages.weights import WeightsNew, WeightsOk, WeightsPublish
from midflight.messages.wire import MAX_BUFFER

from . import payload
from .book import Book
from .recovery import RestoreTooOldError
from .row import EVAL_BASE, Continued, Generated, Outcome, Scored, first_line
from .row import Refused as Impossible
from .states import STAGES, State, Verdict
from .status import status
from .store import Store

KIND_OF_STAGE: dict[Stage, str] = {"generate": "rollout", "score": "reward", "train": "learner"}
Answer = tuple[int, int, Outcome]
"""Sample, epoch, outcome."""
MAX_TOKENS = MAX_BUFFER // 4
"""Of a trajectory, and bytes of its conversation: what fits the wire."""
MAX_TAIL = MAX_BUFFER // 2
"""Bytes of a conversation behind its row when the tools have spoken; the model's last word may double it."""
MADE = (State.GENERATED, State.SCORING, State.READY)
"""Where a sample is whose trajectory is whole, or may be."""


class Desk(Actor):
    """Handlers only; `service.Ledger` has the turn, the store and the sockets."""

    SERVES: ClassVar[tuple[str, ...]] = ("data",)
    book: Book
    store: Store
    boot_id: str
    weights: WeightsNew | None
    kind_of: Callable[[str], str]
    """Kind of a service by its name; empty for anything else."""
    longest: int | None
    """Positions that a sample may have to fit the learner; None: any number."""
    why = ""
    """Why a sample was last refused."""

    # what the ledger behind the desk does

    def reply(self, letter: Letter, message: Message) -> None:
        """Answer after the commit of this turn."""
        raise AssertionError

    def remember(self, sample: int, blob: bytes) -> None:
        """Keep a fresh trajectory at hand."""
        raise AssertionError

    def lengths(self) -> dict[str, Scalar]:
        """How long what was generated, trained and dropped is."""
        raise AssertionError

    def blob(self, sample: int) -> bytes:
        """A stored trajectory."""
        raise AssertionError

    def keep_weights(self, new: WeightsNew) -> None:
        """Store the newest handle with this turn's transaction."""
        raise AssertionError

    def keep_longest(self, positions: int | None) -> None:
        """Store what the learner holds with this turn's transaction."""
        raise AssertionError

    @property
    def exhausted(self) -> bool:
        """Whether no further batch will come."""
        raise AssertionError

    # workers

    @handles(Want)
    def _on_want(self, message: Want, letter: Letter) -> None:
        if not self._may(letter, KIND_OF_STAGE[message.stage]):
            return
        held = [(sample, epoch) for sample, epoch in message.held]
        lost = self.book.want(
            letter.sender,
            message.stage,
            message.n,
            held,
            held[: message.begun],
            message.version,
            self.bus.now(),
            greeted=message.boot == self.boot_id,
        )
        newest = self.weights.version if self.weights else -1
        answer = WantOk(
            boot=self.boot_id,
            version=newest,
            lost=[list(lease) for lease in lost],
            evaluating=self.book.evaluating >= 0,
            exhausted=self.exhausted,
        )
        self.reply(letter, answer)
        if message.stage == "generate" and self.weights and message.version < newest:
            self.reply(letter, self.weights)

    @handles(Trajectories)
    def _on_trajectories(self, message: Trajectories, letter: Letter) -> None:
        if not self._may(letter, "rollout"):
            return
        try:
            cut = payload.cut(message, letter.received.views())
            answers: list[Answer] = [
                (part.id, part.epoch, self._generated(part, blob, letter.sender)) for part, blob in cut
            ]
        except (ValueError, KeyError) as error:
            self.reply(letter, Refused(code="columns", why=f"trajectories: {error}"))
            return
        self._take("generate", answers, letter)

    @handles(Scores)
    def _on_scores(self, message: Scores, letter: Letter) -> None:
        if not self._may(letter, "reward"):
            return
        answers: list[Answer] = []
        for score in message.scores:
            if score.messages and score.fault is None:
                answers.append((score.id, score.epoch, self._continued(score, letter.sender)))
                continue
            faulty = score.fault is not None or not score.rewards
            why = score.fault or "reward_fn gave no reward"
            answers.append((score.id, score.epoch, Impossible(why) if faulty else Scored(score.rewards)))
        self._take("score", answers, letter)

    @handles(Refuse)
    def _on_refuse(self, message: Refuse, letter: Letter) -> None:
        if self._may(letter, KIND_OF_STAGE[message.stage]):
            sample, epoch = message.lease
            self._take(message.stage, [(sample, epoch, Impossible(message.why))], letter)

    @handles(GiveBack)
    def _on_give_back(self, message: GiveBack, letter: Letter) -> None:
        if not self._may(letter, KIND_OF_STAGE[message.stage]):
            return
        failed_at = self.bus.now() if message.failed else None
        for sample, epoch in message.leases:
            self.why = first_line(message.why) if message.failed else self.why
            self.book.give_back(
                message.stage, sample, epoch, letter.sender, message.why, strike=message.strike, failed_at=failed_at
            )
        self.reply(letter, Ok(done=message.leases, stale=[]))

    # the learner

    @handles(Restore)
    def _on_restore(self, message: Restore, letter: Letter) -> None:
        if not self._may(letter, "learner"):
            return
        views = letter.received.views()
        done = dict(zip(views["samples"].tolist(), views["steps"].tolist(), strict=True))
        try:
            reopened = self.book.restore(message.step, letter.sender, done)
        except (RestoreTooOldError, ValueError) as error:
            self.reply(letter, Refused(code="restore", why=str(error)))
            return
        self._hold(message.longest)
        newest = -1 if self.book.newest is None else self.book.newest
        steps = [[version, step] for version, step in self.book.version_steps.items()]
        self.reply(letter, Restored(step=message.step, reopened=len(reopened), version=newest, steps=steps))

    @handles(WeightsPublish)
    def _on_publish(self, message: WeightsPublish, letter: Letter) -> None:
        if not self._may_steer(letter):
            return
        if self.book.publish(message.version, message.step, letter.sender, message.last):
            self.keep_weights(WeightsNew(version=message.version, step=message.step, handle=message.handle))
        self.reply(letter, WeightsOk(version=message.version))

    @handles(Trained)
    def _on_trained(self, message: Trained, letter: Letter) -> None:
        if not self._may_steer(letter):
            return
        leases = [(sample, epoch) for sample, epoch in message.leases]
        verdict = self.book.trained(leases, message.step, letter.sender)
        fine = verdict is Verdict.OK
        self.reply(letter, Ok(done=message.leases if fine else [], stale=[] if fine else message.leases))

    @handles(Commit)
    def _on_commit(self, message: Commit, letter: Letter) -> None:
        if self._may_steer(letter):
            self.book.commit(message.step, letter.sender)
            if self.book.committed >= message.step:  # else a `trained` that was lost is on its way again: so is this
                self.reply(letter, Committed(step=message.step))

    # the kernel and people

    @handles(PeerDown)
    def _on_peer_down(self, message: PeerDown, letter: Letter) -> None:
        if letter.port == "ctl":
            self.book.holder_died(message.peer)
            self.mail.forget(message.peer)

    @handles(LedgerGet)
    def _on_get(self, message: LedgerGet, letter: Letter) -> None:
        """Answered at once, also while nothing can be committed: people ask most then."""
        stats: dict[str, Any] = {"live": True, **self.stats, **self.lengths()}
        letter.reply(status(self.book.snapshot(), self.store, message.sample, stats))

    def _generated(self, part: TrajectoryPart, new: bytes, sender: str) -> Outcome:
        """A turn, with what was there before it. Raises ValueError for another turn than was asked for."""
        blob = new
        if part.turn and self._stands("generate", part.id, part.epoch, sender):
            if part.turn != self.book.rows[part.id].turn:
                raise ValueError(f"sample {part.id} is at turn {self.book.rows[part.id].turn}, not {part.turn}")
            blob = payload.extended(self.blob(part.id), new, apart=part.segment)
        if (size := payload.head_of(blob).tail + len("[]")) > MAX_BUFFER:
            return Impossible(f"conversation too long: {size} bytes, at most {MAX_BUFFER} fit")
        if blob is new:
            return Generated(new, part.version)
        if (tokens := payload.head_of(blob).tokens) > MAX_TOKENS:
            return Impossible(f"trajectory too long: {tokens} tokens, at most {MAX_TOKENS} fit")
        if why := self._too_long(part.id, blob):
            return Impossible(why)
        return Generated(blob, part.version)

    def _continued(self, score: Score, sender: str) -> Outcome:
        """What the tools said, behind the conversation so far."""
        if not self._stands("score", score.id, score.epoch, sender):
            return Continued(b"")  # of no effect; the book says why
        said = b",".join(json.dumps(dict(one), ensure_ascii=False).encode() for one in score.messages)
        blob = payload.answered(self.blob(score.id), said, score.state.encode())
        if (size := payload.head_of(blob).tail) > MAX_TAIL:
            return Impossible(f"conversation too long: {size} bytes, at most {MAX_TAIL} fit")
        return Continued(blob)

    def _too_long(self, sample: int, blob: bytes) -> str:
        """Why a learner cannot take a sample, whose segments it reads all at once; "" if it can, or need not."""
        head = payload.head_of(blob)
        if self.longest is None or head.positions <= self.longest or sample >= EVAL_BASE:
            return ""
        return (
            f"too long for the learner: {head.positions} positions in {max(1, head.segments)} segments, "
            f"max_length_per_device is {self.longest} - raise it, or lower rollout.max_length or ledger.max_turns"
        )

    def _hold(self, longest: int | None) -> None:
        """From now on samples are for a learner that takes so many positions; what there is was made for another."""
        if longest == self.longest:
            return
        self.keep_longest(longest)
        for row in [row for row in self.book.rows.values() if row.state in MADE]:
            if why := self._too_long(row.id, self.blob(row.id)):
                self.book.refuse(row.id, why)

    def _stands(self, stage: Stage, sample: int, epoch: int, sender: str) -> bool:
        """Whether it is the standing lease of `sender`."""
        row = self.book.rows.get(sample)
        return row is not None and self.book.stands(row, STAGES[stage], epoch, sender) is None

    def _take(self, stage: Stage, answers: Iterable[Answer], letter: Letter) -> None:
        """Put answers into the book; say which counted and which had no effect."""
        done: list[list[int]] = []
        stale: list[list[int]] = []
        for sample, epoch, outcome in answers:
            if isinstance(outcome, Impossible):
                self.why = first_line(outcome.why)
            verdict = self.book.answer(stage, sample, epoch, letter.sender, outcome)
            if isinstance(outcome, Generated | Continued) and sample in self.book.changes.payloads:
                self.remember(sample, self.book.changes.payloads[sample])
            (done if verdict is Verdict.OK else stale).append([sample, epoch])
        self.reply(letter, Ok(done=done, stale=stale))

    def _may(self, letter: Letter, kind: str) -> bool:
        """Refuse, and log, what a peer of another kind has no business saying."""
        if self.kind_of(letter.sender.split("#")[0]) == kind:
            return True
        self.mail.counters["role"] += 1
        why = f"{letter.received.envelope.k} is for services of kind {kind}, not for {letter.sender}"
        self.reply(letter, Refused(code="role", why=why))
        return False

    def _may_steer(self, letter: Letter) -> bool:
        """Only the learner that restored last changes steps and versions: an older one is fenced."""
        if not self._may(letter, "learner"):
            return False
        if self.book.leads(letter.sender):
            return True
        self.reply(letter, Refused(code="identity", why=f"{letter.sender} is not the learner that restored last"))
        return False
