"""A world around the ledger's book: workers, a learner with checkpoints, a network that loses, repeats and reorders.

Everything is a method a test may call in any order, and every promise of the ledger is asserted as it goes:
effect once, nothing lost, one state each, the balance, leases kept for those who keep asking.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from midflight.services.ledger.book import Book
from midflight.services.ledger.grants import Grant
from midflight.services.ledger.row import Continued, Generated, Row, Scored
from midflight.services.ledger.rules import Rules
from midflight.services.ledger.states import OPEN, STAGE_OF_LEASE, Split, StageName, State, Verdict
from midflight.services.ledger.store import Store
from support.ledger_cast import Lease, Letter, Worker
from support.ledger_promises import check, settle

KINDS: tuple[StageName, ...] = ("generate", "generate", "score", "train")


class World:
    """One run in one process on a virtual clock."""

    def __init__(
        self,
        path: Path,
        rules: Rules,
        book: type[Book] = Book,
        *,
        groups: int = 6,
        poison: frozenset[int] = frozenset(),
        ack_first: bool = False,
        ends: bool = False,
        turns: int = 1,
    ) -> None:
        self.path, self.rules, self.book_class = path, rules, book
        self.groups, self.poison, self.ack_first = groups, poison, ack_first
        self.turns = turns
        self.spoken: dict[tuple[int, int], bytes] = {}
        """(sample, turn) -> the trajectory that its tools were shown, the same at every try."""
        self.ends = ends or rules.deterministic  # a cohort waits for prompts unless it is told that none will come
        self.now = 100.0
        self.store = Store(path)
        self.book = book.load(rules, self.store.load(), self.now)
        self.net: list[Letter] = []
        self.out: list[Letter] = []
        self.late: list[Letter] = []
        self.generation = self.boot = 0
        self.workers: dict[str, Worker] = {}
        self.known_dead: set[str] = set()
        self.promised: dict[Lease, tuple[float, str]] = {}
        self.begun_tries: dict[int, int] = {}
        self.disk: list[tuple[int, dict[int, int]]] = [(0, {})]
        self.epochs: dict[int, int] = {}
        self.sent: dict[int, int] = {}
        self.final: dict[int, State] = {}
        self.slots = [self._spawn(stage) for stage in KINDS]

    # --- workers ----------------------------------------------------------------------------------------------------

    def _spawn(self, stage: StageName) -> str:
        self.generation += 1
        worker = Worker(f"{stage}#{self.generation}", stage)
        if stage == "train":
            worker.step, history = self.disk[-1]
            worker.history = dict(history)
        self.workers[worker.name] = worker
        return worker.name

    def kill(self, slot: int) -> None:
        """SIGKILL a worker; the kernel starts another and tells the ledger (unless the ledger dies first)."""
        name = self.slots[slot]
        worker = self.workers.pop(name)
        for id_ in worker.begun:
            self.begun_tries[id_] = self.begun_tries.get(id_, 0) + 1
        self.slots[slot] = self._spawn(worker.stage)
        self.net.append(Letter("", self._on_death, (name,)))

    def speak(self, slot: int) -> None:
        """A worker says what it holds, and repeats what was not acknowledged."""
        w = self.workers[self.slots[slot]]
        if w.stage == "train" and not w.restored:
            self._post("", self._on_restore, w.name, w.step, dict(w.history))
            return
        held = [*w.held.items(), *(lease for lease in w.unacked if w.stage != "train")]
        if w.stage == "train":
            held = [lease for batch in w.batches for lease in batch] + [x for a in w.unacked.values() for x in a[1]]
            n = max(0, 2 - len(w.batches))
            self._post("", self._on_publish, w.name, w.step)
        else:
            n = 4 - len(w.held)
        self._post("", self._on_want, w.name, w.stage, n, held, list(w.begun.items()), w.version, w.boot)
        for answer in w.unacked.values():
            self._post("", self._on_answer, w.name, w.stage, answer)

    def load_weights(self, slot: int) -> None:
        """A rollout loads the newest policy."""
        w = self.workers[self.slots[slot]]
        if self.book.newest is not None:
            w.version = max(w.version, self.book.newest)

    def begin(self, slot: int, pick: int) -> None:
        """A worker begins one of its samples and says so (a suspect only when alone)."""
        w = self.workers[self.slots[slot]]
        ready = [lease for lease in w.held.items() if lease[0] not in w.begun]
        if w.stage == "train" or not ready:
            return
        id_, epoch = ready[pick % len(ready)]
        w.begun[id_] = epoch
        self.speak(slot)

    def finish(self, slot: int, pick: int) -> None:
        """A worker finishes a begun sample, or dies of it; a learner trains a batch."""
        w = self.workers[self.slots[slot]]
        if w.stage == "train":
            self._train(w)
            return
        if not w.begun:
            return
        id_, epoch = list(w.begun.items())[pick % len(w.begun)]
        if id_ in self.poison and w.stage == "generate":
            self.kill(slot)
            return
        del w.begun[id_]
        if w.held.get(id_) == epoch:
            del w.held[id_]
        answer: Any = Generated(b"t%d" % id_, w.version) if w.stage == "generate" else self._scored(w, id_, epoch)
        w.unacked[id_, epoch] = (id_, epoch, answer)
        self._post("", self._on_answer, w.name, w.stage, w.unacked[id_, epoch])

    def turns_of(self, id_: int) -> int:
        """How often the model speaks in the episode of a sample."""
        return 1 + id_ % self.turns

    def _scored(self, w: Worker, id_: int, epoch: int) -> Continued | Scored:
        """The tools speak, unless it was the last turn."""
        turn, shown = w.seen_turns.get((id_, epoch), (0, b""))
        if turn + 1 >= self.turns_of(id_):
            return Scored({"r": float(id_ % 3)})
        assert self.spoken.setdefault((id_, turn), shown) == shown, f"turn {turn} of {id_} was told two ways"
        return Continued(b"")

    def _train(self, w: Worker) -> None:
        if not w.batches or not w.restored:
            return
        batch = w.batches.pop(0)
        w.step += 1
        for id_, _ in batch:
            assert id_ not in w.history, f"sample {id_} trained at step {w.history[id_]} and again at {w.step}"
            w.history[id_] = w.step
        w.unacked[w.step, -1] = (w.step, batch)
        self._post("", self._on_answer, w.name, w.stage, w.unacked[w.step, -1])
        self._post("", self._on_publish, w.name, w.step)

    def checkpoint(self) -> None:
        """The learner makes a checkpoint durable, keeps the last two, and commits it."""
        w = self.workers[self.slots[-1]]
        if w.restored and w.step > self.disk[-1][0]:
            self.disk = [*self.disk[-1:], (w.step, dict(w.history))]
            self._post("", self._on_commit, w.name, w.step)

    def lose_checkpoint(self) -> None:
        """The newest checkpoint turns out corrupt while the learner dies."""
        if len(self.disk) > 1:
            self.disk.pop()
            self.kill(len(self.slots) - 1)

    # --- the network ------------------------------------------------------------------------------------------------

    def _post(self, to: str, act: Callable[..., None], *args: Any) -> None:
        self.net.append(Letter(to, act, args))

    def deliver(self, pick: int) -> None:
        """Deliver any one letter."""
        if self.net:
            self._hand(self.net.pop(pick % len(self.net)))

    def copy(self) -> None:
        """Keep a copy of every letter on its way for much later."""
        self.late = [*self.late, *self.net][-60:]

    def deliver_late(self) -> None:
        """Deliver all kept copies, perhaps not for the last time."""
        for letter in self.late:
            self._hand(letter)

    def _hand(self, letter: Letter) -> None:
        if not letter.to:
            letter.act(*letter.args)
        elif letter.to in self.workers:
            letter.act(self.workers[letter.to], *letter.args)

    def lose(self, pick: int) -> None:
        """Lose any one letter but a death notice, which the kernel repeats."""
        index = pick % len(self.net) if self.net else 0
        if self.net and self.net[index].act != self._on_death:
            del self.net[index]

    # --- the ledger -------------------------------------------------------------------------------------------------

    def _reply(self, to: str, act: Callable[..., None], *args: Any) -> None:
        (self.net if self.ack_first else self.out).append(Letter(to, act, args))

    def _on_want(
        self, name: str, stage: StageName, n: int, held: list[Lease], begun: list[Lease], version: int, boot: int
    ) -> None:
        self.book.want(name, stage, n, held, begun, version, self.now, greeted=boot == self.boot)
        self._reply(name, self._on_greeting, self.boot)
        if name in self.known_dead:
            return
        for id_, epoch in held:
            row = self.book.rows.get(id_)
            if row and row.epoch == epoch and row.state in STAGE_OF_LEASE and row.holder == name:
                self.promised[id_, epoch] = (self.now + self.rules.lease_s[stage], name)

    def _on_answer(self, name: str, stage: StageName, answer: Any) -> None:
        if stage == "train":
            step, batch = answer
            before = {id_: self.book.rows[id_].epoch for id_, _ in batch if id_ in self.book.rows}
            moved = {id_: self.book.rows[id_].state for id_ in before}
            verdict = self.book.trained(batch, step, name)
            for id_, epoch in batch:
                if id_ in before and self.book.rows[id_].state is not moved[id_]:
                    assert before[id_] == epoch, f"an old epoch trained sample {id_}"
            self._reply(name, self._on_verdict, (step, -1), verdict)
            return
        id_, epoch, outcome = answer
        row = self.book.rows.get(id_)
        was = (row.state, row.epoch) if row else None
        if row and row.epoch == epoch:
            outcome = self._with_past(row, outcome)
        verdict = self.book.answer(stage, id_, epoch, name, outcome)
        if row and was and was[0] is not row.state:
            assert was[1] == epoch, f"an answer under epoch {epoch} moved sample {id_} of epoch {was[1]}"
        self._reply(name, self._on_verdict, (id_, epoch), verdict)

    def _with_past(self, row: Row, outcome: Any) -> Any:
        """What the desk makes of an answer: it stands behind what is stored."""
        if isinstance(outcome, Generated) and row.past:
            return Generated(self.blob(row.id) + b"g", outcome.min_version)
        return Continued(self.blob(row.id) + b"s") if isinstance(outcome, Continued) and row.bytes else outcome

    def blob(self, id_: int) -> bytes:
        """A stored trajectory, or one about to be."""
        return self.book.changes.payloads.get(id_) or self.store.payload(id_)

    def _on_restore(self, name: str, step: int, done: dict[int, int]) -> None:
        if name not in self.workers:
            return  # an older learner's restore is older than its death, and the kernel fences it
        self.book.restore(step, name, done)
        self._reply(name, self._on_restored)
        if self.book.published_step is None:
            self.book.publish(0 if self.book.newest is None else self.book.newest + 1, step, name)

    def _on_publish(self, name: str, step: int) -> None:
        newest = -1 if self.book.newest is None else self.book.newest
        if self.book.published_step is not None and step > self.book.published_step:
            self.book.publish(newest + 1, step, name)

    def _on_commit(self, name: str, step: int) -> None:
        self.book.commit(step, name)

    def _on_death(self, name: str) -> None:
        self.known_dead.add(name)
        self.promised = {k: v for k, v in self.promised.items() if v[1] != name}
        self.book.holder_died(name)

    def turn(self) -> None:
        """Expire, admit, grant."""
        self.book.expire(self.now)
        while self.book.next_group < self.groups and self.book.room():
            self.book.open_group()
        self.book.over = self.ends and self.book.next_group >= self.groups
        for grant in self.book.match(self.now):
            assert grant.holder not in self.known_dead, f"{grant.holder} is dead and was granted {grant.leases}"
            self._reply(grant.holder, self._on_grant, grant, self._told(grant))

    def _told(self, grant: Grant) -> dict[Lease, tuple[int, bytes]]:
        """The turn and the trajectory that go with each sample to be scored."""
        if grant.stage != "score":
            return {}
        return {(id_, epoch): (self.book.rows[id_].turn, self.blob(id_)) for id_, epoch in grant.leases}

    def flush(self) -> None:
        """Commit, then let replies and grants go."""
        self.store.write(self.book.changes)
        for letter in self.out:
            if letter.act == self._on_grant:
                self.sent.update(letter.args[0].leases)
        self.net += self.out
        self.out = []

    def restart(self) -> None:
        """SIGKILL the ledger and start it from its file; what was not committed is gone."""
        self.store.close()
        self.out = []
        self.boot += 1
        self.store = Store(self.path)
        self.book = self.book_class.load(self.rules, self.store.load(), self.now)
        self.known_dead = set()
        self.promised = {}
        self.epochs, self.final = dict(self.sent), {}

    def restart_busy(self) -> None:
        """SIGKILL the ledger after it has taken every letter, and whatever it let go, but before it committed."""
        for _ in range(2):
            for _ in range(len(self.net)):
                self.deliver(0)
        self.restart()

    def restart_heard(self) -> None:
        """Restart the ledger; every worker notices the new boot id, claims what it holds, and time goes on."""
        self.restart()
        for slot in range(len(self.slots)):
            self.speak(slot)
        self._exchange()
        self.advance(self.rules.claim_s + 0.1)
        self.turn()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    # --- workers hear -----------------------------------------------------------------------------------------------

    def _on_greeting(self, w: Worker, boot: int) -> None:
        w.boot = max(w.boot, boot)

    def _on_grant(self, w: Worker, grant: Grant, told: dict[Lease, tuple[int, bytes]]) -> None:
        w.seen_turns.update(told)
        if w.stage == "train":
            self._take_batch(w, grant.leases)
            return
        for id_, epoch in grant.leases:
            if w.held.get(id_, 0) < epoch and all(epoch > e for i, e in w.unacked if i == id_):
                w.held[id_] = epoch

    def _take_batch(self, w: Worker, batch: list[Lease]) -> None:
        """A learner takes a batch once; a newer grant of a batch it has not trained replaces the older."""
        if not w.restored or any(epoch <= w.seen.get(id_, 0) for id_, epoch in batch):
            return
        w.seen.update(batch)
        again = [id_ for id_, _ in batch if id_ in w.history]
        if again:
            waiting = {step for step, _ in w.unacked.values()}
            assert all(w.history[id_] in waiting for id_ in again), f"{again} granted again though they are trained"
            return
        ids = {id_ for id_, _ in batch}
        w.batches = [b for b in w.batches if not ids & {id_ for id_, _ in b}]
        w.batches.append(list(batch))

    def _on_verdict(self, w: Worker, key: Lease, verdict: Verdict) -> None:
        assert verdict is not Verdict.UNKNOWN, f"{w.name} was given {key}, and now the ledger has never heard of it"
        if w.unacked.pop(key, None) is not None and w.stage == "train" and verdict is Verdict.STALE:
            self.kill(len(self.slots) - 1)  # its weights hold an effect that will be repeated: back to the checkpoint

    def _on_restored(self, w: Worker) -> None:
        w.restored = True

    # --- to the end ---------------------------------------------------------------------------------------------

    def drain(self, rounds: int = 400) -> None:
        """Let everything run fairly to its end, then check that nothing is lost and nothing was done twice."""
        for _ in range(rounds):
            self.round()
            if self._done():
                break
        check(self)
        left = {row.id: row.state for row in self.book.rows.values() if row.state in OPEN}
        assert self._done(), f"not finished after {rounds} rounds: {left}"
        settle(self)

    def round(self) -> None:
        """One fair turn of everybody."""
        last = len(self.slots) - 1
        for slot in range(len(self.slots)):
            if slot < last:
                self.load_weights(slot)
            self.speak(slot)
        self._exchange()
        self.turn()
        self.flush()
        self._exchange()
        for slot in range(len(self.slots)):
            alone = any(i in self.poison for i in self.workers[self.slots[slot]].held)
            for _ in range(1 if alone else 4):
                self.begin(slot, 0)
            self._exchange()
            for _ in range(4):
                self.finish(slot, 0)
        self._exchange()
        self.advance(1.0)

    def _exchange(self) -> None:
        for _ in range(3):
            for _ in range(len(self.net)):
                self.deliver(0)
            self.flush()

    def _done(self) -> bool:
        counts = self.book.totals[Split.TRAIN]
        busy = sum(counts[s] for s in OPEN if s is not State.READY)
        learner = self.workers[self.slots[-1]]
        quiet = not learner.unacked and not learner.batches and not self.book.batches.waiting
        few = len(self.book.batches.complete) < self.rules.prompts_per_rollout
        if self.ends and not self.book.finished:
            return False
        return self.book.next_group >= self.groups and not busy and quiet and few and not self.book.in_flight()
