"""ledger: owns every prompt and sample of the run, and can account for each of them at any time.

Takes   `want` (all stages), `trajectories`, `scores`, `trained`, `commit`, `restore`, `weights.publish`, `give.back`,
        `sample.refuse`, `peer.down` and `knob.apply` (from the kernel), `ledger.get` (anyone).
Sends   `tickets`, `score.jobs`, `batch` (all under lease), `ok`, `weights.new`, and evaluation results as events.
Stores  ledger.sqlite: every sample's state and life, trajectories until they are committed, the newest weights' handle.
Dies    any time. Nothing is acknowledged before it is committed, so whoever was not answered sends again; leases are
        claimed by their holders in their next `want`, and the rest return. A full disk stops acknowledgements, not the
        process.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import structlog

from midflight.kernel.actor import Actor
from midflight.kernel.mail import Bus
from midflight.kernel.mistake import UserMistake
from midflight.kernel.node import Letter
from midflight.kernel.settings import Settings
from midflight.kernel.spec import knob_prefix, live_knobs, with_live
from midflight.messages.base import Message, Scalar
from midflight.messages.control import PeerDown
from midflight.messages.knobs import KnobDeclaration
from midflight.messages.samples import LedgerGet
from midflight.messages.sockets import Role
from midflight.messages.weights import WeightsNew

from .book import Book
from .config import LedgerConfig, batch_size
from .desk import Desk
from .grants import Grant
from .knobs import changed
from .lengths import Lengths
from .outgoing import batch, score_jobs, tickets
from .overlap import Overlap
from .prompts import LOOKED_AT, Prompt, Prompts
from .refusals import Reading, Refusals, because
from .row import EVAL_BASE, Row, first_line
from .rules import Rules
from .sources import checked
from .states import Split, State
from .store import Store, StoreError, StoreFull
from .table import Lease

RETRY_FULL_S = 0.5
READ_S = 1800.0
"""A dataset of the hub may have to be downloaded and prepared."""
REPORT_S = 5.0
ROWS_A_TURN = 256
"""So many rows are read in one turn at most: a turn that takes long delays heartbeats and all answers."""
REFUSALS = 8
"""So many batches' worth of samples refused in a row, with none scored, end the run."""
SCORED = (State.READY, State.LEASED, State.TRAINED, State.FILTERED)
CACHE_BYTES = 64 << 20
HEARD_WHEN_FULL = Actor.HANDLERS.keys() | {PeerDown.KIND, LedgerGet.KIND}
GAP_S = 1.0
"""A turn this late means that the ledger itself stood still: nobody loses a lease for it."""


class Ledger(Desk):
    """The book behind sockets: one transaction a turn, replies after it."""

    PORTS: ClassVar[dict[str, Role]] = {"ctl": "dealer", "data": "router"}

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        super().__init__(identity, bus)
        self.settings = settings
        self.config = cast(LedgerConfig, settings.config)
        self._declared = live_knobs(self.config, settings.slot)
        self.boot_id = os.urandom(8).hex()
        self.kind_of = settings.kind_of
        self.weights: WeightsNew | None = None
        self.longest: int | None = None
        self._untold = False
        """Whether the rollouts have yet to hear of `weights`."""
        self.full = 0
        """Transactions that the disk refused."""
        self._full_since: float | None = None
        self._replies: list[tuple[Letter, Message]] = []
        self._grants: list[Grant] = []
        self._cache: dict[int, bytes] = {}
        self._cache_bytes = 0
        self._retry_at = 0.0
        self._last_turn = bus.now()
        self._round = (-1, 0.0)
        """The newest evaluation round, and the temperature all of it is sampled at."""
        self._overlap = Overlap()
        self._lengths = Lengths()
        self._refusals = Refusals(most=REFUSALS * batch_size(self.config))
        self._next_report = 0.0
        self._log = structlog.get_logger()

    def start(self) -> None:
        """Read the prompts, open the store, rebuild the book."""
        config = self.config
        with self.phase("read prompts", READ_S):
            data = config.data
            self.prompts = Prompts(data.train, data.evaluation, self.settings.seed, config.epochs)
        self._reading = Reading(most=min(LOOKED_AT, 2 * self.prompts.rows["train"]))
        try:
            self.store = Store(self.settings.run_dir / "ledger.sqlite", durable=config.durable == "power")
            rules = rules_of(config, evaluation=bool(self.prompts.evaluation))
            self.book = Book.load(rules, self.store.load(), self.bus.now())
        except (StoreError, ValueError) as error:
            raise UserMistake(str(error)) from error
        self.longest = cast(int | None, self.store.get("longest"))
        with self.phase("compare data", READ_S):
            stored = cast(dict[str, Any] | None, self.store.get("data"))
            now, accepted = checked(data, self.prompts.rows, stored)
        if now != stored:
            self.book.changes.meta["data"] = now
        if accepted:
            self._log.warning(accepted)
            self.event("note", {"level": "warning", "text": accepted[:900]})
        handle = self.store.get("handle")
        if handle:
            weights = WeightsNew.model_validate_json(cast(str, handle))
            if Path(weights.handle.path).exists():  # shared memory does not outlive a run that was killed
                self.weights = weights
        for why in self.prompts.bad[:100]:
            self._log.warning("prompt refused", why=why)
            self.event("note", {"level": "warning", "text": why[:900]})

    def knobs(self) -> tuple[KnobDeclaration, ...]:
        """The live fields of its configuration."""
        return self._declared

    def apply_knob(self, name: str, value: Scalar) -> int:
        """For the next decision; -> the newest step trained. What a former process used is not judged again."""
        field = name.removeprefix(knob_prefix(self.settings.slot))
        if self.ready:
            self.config = changed(self.config, field, value, self.settings)
            self.book.rules = rules_of(self.config, evaluation=bool(self.prompts.evaluation))
        else:
            self.config = with_live(self.config, field, value)
        self._refusals.most = REFUSALS * batch_size(self.config)
        return self.book.step if self.ready else 0

    def work(self, now: float) -> bool:
        """Expire, admit, grant, commit, and only then answer."""
        if now - self._last_turn > GAP_S:
            self.book.time_back(now - self._last_turn)
        self._last_turn = now
        if now < self._retry_at:
            return False
        self.book.expire(now)
        more = False
        if not self.draining:
            more = self._admit()
            self._grants += self.book.match(now)
        if self._flush():
            self._answer()
        self._count(now)
        self._look_at_refusals(now)
        return more

    def hears(self, kind: str) -> bool:
        """While the disk takes nothing, nothing is taken in: every worker says again what was not answered."""
        return super().hears(kind) and (self._full_since is None or kind in HEARD_WHEN_FULL)

    def idle(self) -> bool:
        """What is not terminal stays in the store for the next start."""
        return not self._replies and not self._grants

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def reply(self, letter: Letter, message: Message) -> None:
        """Answer after the commit of this turn."""
        self._replies.append((letter, message))

    def lengths(self) -> dict[str, Scalar]:
        """How long what was generated, trained and dropped is."""
        return self._lengths.told()

    def keep_weights(self, new: WeightsNew) -> None:
        """Store the newest handle with this turn's transaction, after which the rollouts hear of it."""
        self.weights, self._untold = new, True
        self.book.changes.meta["handle"] = new.model_dump_json()

    def keep_longest(self, positions: int | None) -> None:
        """Store what the learner holds with this turn's transaction."""
        self.longest = positions
        self.book.changes.meta["longest"] = positions

    def remember(self, sample: int, blob: bytes) -> None:
        """Keep a fresh trajectory at hand for the stages that follow at once."""
        self._cache_bytes += len(blob) - len(self._cache.pop(sample, b""))
        self._cache[sample] = blob
        while self._cache_bytes > CACHE_BYTES:
            oldest = next(iter(self._cache))
            self._cache_bytes -= len(self._cache.pop(oldest))

    def blob(self, sample: int) -> bytes:
        """A stored trajectory."""
        return self._cache.get(sample) or self.store.payload(sample)

    def prompt(self, row: Row) -> Prompt:
        """The prompt of a sample."""
        if row.split is Split.EVAL:
            return self.prompts.of_evaluation((row.id - EVAL_BASE) % self.book.rules.eval_samples)
        return self.prompts.of_group(row.group)

    def row_json(self, row: Row) -> bytes:
        """The prompt row of a sample."""
        return self.prompt(row).row

    @property
    def exhausted(self) -> bool:
        """No prompt is left and nothing is open any more."""
        return self.book.finished

    def _admit(self) -> bool:
        """Read rows while there is room for them; True when a turn's worth was read and there is room for more."""
        book, prompts = self.book, self.prompts
        for _ in range(ROWS_A_TURN):
            if not book.room() or prompts.over(book.next_group):
                break
            refused = prompts.of_group(book.next_group).refused
            self._reading.add(first_line(refused))
            book.open_group(refused)
        book.over = prompts.over(book.next_group)
        return book.room() and not book.over

    def _flush(self) -> bool:
        """One transaction for everything since the last; False while the disk is full."""
        changes = self.book.changes
        if not changes:
            return True
        results = list(changes.results)
        self._lengths.note(changes)
        try:
            self.store.write(changes)
        except StoreFull as error:
            self.full += 1
            self._retry_at = self.bus.now() + RETRY_FULL_S
            if self._full_since is None:
                self._full_since = self.bus.now()
                self._log.error("ledger cannot write; nothing is acknowledged until it can", why=str(error))
            return False
        if self._full_since is not None:
            self.book.time_back(self.bus.now() - self._full_since)
            self._full_since = None
            self._log.info("ledger writes again", refused=self.full)
        for result in results:
            body: dict[str, Scalar] = {f"eval/{name}": value for name, value in result.rewards.items()}
            self.event(
                "evaluation",
                {**body, "version": result.version, "n": result.n, "refused": result.refused},
                self.book.step,
            )
            if not result.n:
                text = (
                    f"no held-out sample of version {result.version} could be scored{because(first_line(result.why))}"
                )
                self.event("note", {"level": "warning", "text": text})
        return True

    def _answer(self) -> None:
        for letter, message in self._replies:
            letter.reply(message)
        self._replies.clear()
        if self._untold and self.weights:  # who misses this hears it with the next want
            self._untold = False
            for rollout in self.book.credits["generate"].heard(self.bus.now()):
                self.mail.send("data", self.weights, to=rollout.holder)
        for grant in self._grants:
            if not self._send(grant):
                self.book.unsent(grant)
        self._grants.clear()

    def _send(self, grant: Grant) -> bool:
        if grant.stage != "train":
            grant = self._usable(grant)
        rows = [self.book.rows[sample] for sample, _ in grant.leases]
        if grant.stage == "generate":
            out = tickets(grant, rows, self.row_json, self.blob, self.settings.seed, self._eval_temperature())
        elif grant.stage == "score":
            out = score_jobs(grant, rows, self.row_json, self.blob, self.config.max_turns)
        else:
            out = batch(grant, rows, self.blob, self.config.max_turns)
        return all(self.mail.send("data", message, to=grant.holder, columns=columns) for message, columns in out)

    def _usable(self, grant: Grant) -> Grant:
        """The grant without the samples whose row, read once more, is not usable any more: its file has changed."""
        leases: list[Lease] = []
        for sample, epoch in grant.leases:
            if why := self.prompt(self.book.rows[sample]).refused:
                self.why = first_line(why)
                self.book.refuse(sample, why)
            else:
                leases.append((sample, epoch))
        return replace(grant, leases=leases)

    def _eval_temperature(self) -> float:
        """The same for a whole round, whatever is set meanwhile."""
        if self._round[0] != self.book.next_round:
            self._round = (self.book.next_round, self.config.evaluation.temperature)
        return self._round[1]

    def _look_at_refusals(self, now: float) -> None:
        """Tell of refused samples, and end a run that has nothing else.

        A sample of a row that cannot be used was refused before anything could have been scored: such rows are judged
        by whether others come between them. Raises UserMistake with the last reason.
        """
        counts, reading = self.book.totals[Split.TRAIN], self._reading
        refused, scored = counts[State.REFUSED], sum(counts[state] for state in SCORED)
        worked_on = refused - reading.unusable * self.book.size
        too_many = self._refusals.too_many(worked_on, scored, now)
        if self._refusals.worth_a_note(refused, now):
            rows = f"; {reading.told()}{because(reading.why)}" if reading.unusable else ""
            text = f"{refused} samples refused so far{because(self.why)}{rows}"
            self.event("note", {"level": "warning", "text": text})
        if too_many:
            raise UserMistake(f"{self._refusals.row} samples refused and none scored meanwhile{because(self.why)}")
        if reading.hopeless:
            raise UserMistake(f"{reading.told()}, the last {reading.row:,} among them{because(reading.why)}")

    def on_drain(self) -> None:
        """The last word on how much was done at once, and on how long it was."""
        self.event("overlap", self._overlap.shares())
        if lengths := self._lengths.told():
            self.event("lengths", lengths)

    def _count(self, now: float) -> None:
        counts = self.book.totals[Split.TRAIN]
        self._overlap.add(now, generating=self.book.busy("generate"), training=self.book.busy("train"))
        if now >= self._next_report:
            self._next_report = now + REPORT_S
            self.event("overlap", self._overlap.shares())
            if lengths := self._lengths.told():
                self.event("lengths", lengths)
        self.progress = self.book.step + self.book.opened[Split.TRAIN]
        self.stats = {
            "step": self.book.step,
            "version": -1 if self.book.newest is None else self.book.newest,
            **({"refused_messages": self.mail.refused} if self.mail.refused else {}),
            **{state.value: counts[state] for state in State if counts[state]},
        }


def rules_of(config: LedgerConfig, *, evaluation: bool) -> Rules:
    """The configuration as the book reads it."""
    return Rules(
        prompts_per_rollout=config.prompts_per_rollout,
        responses_per_prompt=config.responses_per_prompt,
        max_staleness=config.max_staleness,
        version_slack=config.version_slack,
        max_lag=config.max_lag,
        on_stale=config.on_stale,
        filter_zero_variance=config.filter_zero_variance,
        deterministic=config.deterministic,
        max_ready_bytes=config.max_ready_mb << 20,
        lease_s={"generate": config.lease_s, "score": config.lease_s, "train": 10 * config.lease_s},
        claim_s=config.claim_s,
        max_strikes=config.max_tries,
        give_up_s=config.give_up_s,
        eval_every=config.evaluation.every if evaluation else 0,
        eval_samples=config.evaluation.prompts if evaluation else 0,
    )
