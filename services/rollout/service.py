"""rollout: turns tickets into trajectories with the newest policy it has.

Takes   `tickets` (prompts, and episodes to go on with, under lease), `weights.new` (loaded at the next token boundary),
        `knob.apply`, `ok`.
Sends   `want` (credit, leases held, leases begun, policy version), `trajectories`, `sample.refuse`, `give.back`.
Stores  nothing: what it holds is under lease and is issued again when it dies.
Dies    any time. A drain hands back what it has not begun and finishes the rest.
"""

import gc
import json
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import ClassVar, cast

import structlog

from midflight.kernel.mail import Bus
from midflight.kernel.mistake import UserMistake
from midflight.kernel.node import Letter, handles
from midflight.kernel.settings import Settings
from midflight.kernel.spec import knob_prefix, live_knobs, with_live
from midflight.messages.base import Scalar
from midflight.messages.knobs import KnobDeclaration
from midflight.messages.samples import GiveBack, Refuse, Stage, Ticket, Tickets
from midflight.messages.shm import CorruptSlot
from midflight.messages.weights import WeightsNew
from midflight.services.lease.worker import Worker
from midflight.services.model.chat import continued, decode, prompt_ids, raw
from midflight.services.model.open import end_ids, open_model, pick_device
from midflight.services.model.weights import read_weights

from .backend import Backend
from .config import GenerationConfig, RolloutConfig
from .delay import DelayLine
from .engine import Engine
from .forward import BadWeights
from .load import Load
from .request import Completion, Request
from .trajectories import Finished, Prompt, pack

FLUSH_SAMPLES = 64
FLUSH_S = 0.01
ROUND_TRIP_S = 0.1
"""More than passes between a `want` and its tickets, mostly."""
MEMORY = 16
"""So many responses count in the mean of how long one takes."""
EMPTY = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Running:
    """A generation on its way. cut: `max_length` leaves it fewer tokens than it might have had."""

    ticket: Ticket
    prompt: Prompt
    began: float
    cut: bool


class Rollout(Worker):
    """A backend behind the lease protocol: here the embedded engine; subclasses bring another."""

    STAGE: ClassVar[Stage] = "generate"
    engine: Backend

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        super().__init__(identity, bus)
        self.settings = settings
        self.config = cast(GenerationConfig, settings.config)
        self._declared = live_knobs(self.config, settings.slot)
        self._step = 0
        """Of the newest weights read."""
        self.queue: deque[tuple[Ticket, Prompt]] = deque()
        self.running: dict[int, Running] = {}
        self.finished: list[Finished] = []
        self.weights: WeightsNew | None = None
        self._read_version = -1
        self._bad_version = -1
        self._flush_at = 0.0
        self._took_s = math.inf
        """Mean time of a response; inf: none was finished yet."""
        self._load = Load(bus.now())
        self._log = structlog.get_logger()

    def knobs(self) -> tuple[KnobDeclaration, ...]:
        """The live fields of its configuration."""
        return self._declared

    def apply_knob(self, name: str, value: Scalar) -> int:
        """What runs goes on as it began; -> the step of the newest weights, which write the next sample."""
        self.config = with_live(self.config, name.removeprefix(knob_prefix(self.settings.slot)), value)
        self._tune()
        return self._step

    def _tune(self) -> None:
        """A knob was turned: tell the engine what concerns it."""
        if self.ready:
            self.embedded.recompute_kv = cast(RolloutConfig, self.config).recompute_kv

    def start(self) -> None:
        """Load the model and make the engine; its weights count as unknown until a version arrives."""
        config = cast(RolloutConfig, self.config)
        self.delay = DelayLine(config.policy_delay)
        with self.phase("load model", 600):
            self.tokenizer, model = open_model(self.settings.model, self.settings.seed)
            try:
                self.engine = self.embedded = Engine(
                    model,
                    slots=config.slots,
                    max_length=config.max_length,
                    eos_ids=end_ids(self.tokenizer, model) | set(config.stop_token_ids),
                    decode=lambda ids: raw(self.tokenizer, ids),
                    device=pick_device(config.device),
                    version=-1,
                    recompute_kv=config.recompute_kv,
                )
            except ValueError as error:
                raise UserMistake(str(error)) from error
            gc.collect()
            gc.freeze()  # the model's objects live as long as the process; no need to look at them again

    @handles(Tickets)
    def _on_tickets(self, message: Tickets, letter: Letter) -> None:
        views = letter.received.views()
        rows, prefixes, tails = views["rows"], views.get("prefix", EMPTY), views.get("tails", EMPTY)
        start = prefix_at = tail_at = 0
        row, prompt = b"", cast(Prompt | str, "")
        for ticket in message.tickets:
            text, start = bytes(rows[start : start + ticket.row_bytes]), start + ticket.row_bytes
            prefix = prefixes[prefix_at : prefix_at + ticket.prefix_tokens].tolist()
            tail = bytes(tails[tail_at : tail_at + ticket.tail_bytes])
            prefix_at, tail_at = prefix_at + ticket.prefix_tokens, tail_at + ticket.tail_bytes
            if self.draining or not self.holding.take(ticket.id, ticket.epoch):
                continue
            if ticket.turn:
                self._go_on(ticket, prefix, json.loads(text)["messages"] + json.loads(tail))
                continue
            if text != row:  # the members of a group share their prompt
                row, prompt = text, self._prompt(text)
            self._admit(ticket, prompt)

    @handles(WeightsNew)
    def _on_weights(self, message: WeightsNew, letter: Letter) -> None:
        newest = self.weights.version if self.weights else self._read_version
        if message.version > newest:
            self.weights = message

    def work(self, now: float) -> bool:
        """Swap weights, admit what fits, decode one token of everything, hand in what is finished."""
        if self.weights:
            self._swap()
        if self.queue:
            self._begin()
        if self.engine.active:
            self._generate()
        self._flush(now)
        self._say(now)
        self.stats = {"active": self.engine.active, "queued": len(self.queue), "version": self.engine.version}
        return self._busy()

    def _generate(self) -> None:
        """One token of everything."""
        began = time.perf_counter()
        for completion in self.engine.step():
            self._finish(completion)
        self._load.busy_s += time.perf_counter() - began

    def _busy(self) -> bool:
        """Whether the next turn has work at once."""
        return bool(self.engine.active or self.queue)

    @property
    def limit(self) -> int:
        """How many requests may run at once now; those beyond a lowered limit run to their end."""
        return min(self.config.concurrency, self.config.slots)

    def want(self, taken: int = 0) -> None:
        """Ask for free slots, and for what takes the place of those that finish within a round trip; `taken` are about
        to run. What waits here no other rollout can begin.
        """
        limit = self.limit
        ahead = min(limit // 4, math.ceil(limit * ROUND_TRIP_S / self._took_s))
        room = limit + ahead - len(self.running) - len(self.queue) - taken
        self.holding.want(0 if self.draining else room, self.engine.version)

    def on_drain(self) -> None:
        """Give back what was not begun; finish the rest."""
        leases = [(ticket.id, ticket.epoch) for ticket, _ in self.queue]
        self.queue.clear()
        if leases:
            back = GiveBack(stage="generate", leases=[list(lease) for lease in leases], why="drain")
            self.holding.hand_in(leases, back)
        self.want()

    def _prompt(self, row: bytes) -> Prompt | str:
        """The prompt's tokens, or why it cannot be generated from."""
        messages = json.loads(row)["messages"]
        try:
            prompt = prompt_ids(self.tokenizer, messages, template=self.config.apply_chat_template)
        except ValueError as error:
            return str(error)[:2000]
        if len(prompt) + 1 > self.config.max_length:
            return f"prompt of {len(prompt)} tokens leaves no room in max_length {self.config.max_length}"
        return Prompt(prompt)

    def _go_on(self, ticket: Ticket, prefix: list[int], messages: list[dict[str, str]]) -> None:
        """Queue the next turn of an episode; where there is no room for it, it ends as it stands."""
        try:
            more = continued(self.tokenizer, prefix, messages, template=self.config.apply_chat_template)
        except ValueError as error:
            self._admit(ticket, str(error)[:2000])
            return
        known = [] if more.anew else prefix
        prompt = Prompt([*known, *more.ids], len(known), more.anew)
        if len(prompt.ids) + 1 <= self.config.max_length:
            self._admit(ticket, prompt)
            return
        nothing = Completion(ticket.id, [], [], [], "length")
        self._done(Finished(ticket, Prompt(prefix, len(prefix)), nothing, "context", "", 0.0))

    def _admit(self, ticket: Ticket, prompt: Prompt | str) -> None:
        """Queue a ticket, or refuse it for good, by name."""
        if isinstance(prompt, str):
            lease = (ticket.id, ticket.epoch)
            self.holding.hand_in([lease], Refuse(stage="generate", lease=list(lease), why=prompt))
            return
        self.queue.append((ticket, prompt))

    def _begin(self) -> None:
        """Move tickets into the engine; a suspected sample runs alone. They are declared begun first."""
        admitted: list[tuple[Ticket, Prompt]] = []
        alone = any(running.ticket.solo for running in self.running.values())
        free = min(self.engine.free_slots, self.limit - len(self.running))
        while self.queue and len(admitted) < free and not alone:
            if self.queue[0][0].id in self.running:
                break  # a lease of it that is over still runs; the engine takes no second one
            if self.queue[0][0].solo:
                if admitted or self.running:
                    break
                alone = True
            admitted.append(self.queue.popleft())
        if not admitted:
            return
        self.holding.begin(ticket.id for ticket, _ in admitted)
        self.want(taken=len(admitted))
        for ticket, prompt in admitted:
            most, room = self.config.max_new_tokens, self.config.max_length - len(prompt.ids)
            self.running[ticket.id] = Running(ticket, prompt, self.bus.now(), cut=room < most)
            temperature = self.config.temperature if ticket.temperature is None else ticket.temperature
            self.engine.add(
                Request(
                    id=ticket.id,
                    prompt=prompt.ids,
                    max_new_tokens=min(most, room),
                    temperature=temperature,
                    seed=ticket.seed,
                    stop=tuple(self.config.stop),
                )
            )

    def _finish(self, completion: Completion) -> None:
        one = self.running.pop(completion.id)
        took_s = self.bus.now() - one.began
        mean_s = took_s if self._took_s == math.inf else self._took_s
        self._took_s = max(1e-3, mean_s + (took_s - mean_s) / MEMORY)
        self._load.tokens += len(completion.tokens)
        text = decode(self.tokenizer, completion.tokens)
        stop = "context" if one.cut and completion.stop_reason == "length" else completion.stop_reason
        self._done(Finished(one.ticket, one.prompt, completion, stop, text, took_s))

    def _done(self, finished: Finished) -> None:
        self.progress += 1
        if not self.finished:
            self._flush_at = self.bus.now() + FLUSH_S
        self.finished.append(finished)

    def _flush(self, now: float) -> None:
        if not self.finished or not (
            len(self.finished) >= FLUSH_SAMPLES or now >= self._flush_at or not self.engine.active
        ):
            return
        for message, columns in pack(self.finished):
            leases = [(part.id, part.epoch) for part in message.parts]
            self.holding.hand_in(leases, message, columns)
        self.finished = []
        self.want()

    def _swap(self) -> None:
        """Load new weights between two tokens; a bad file is reported and waited out."""
        new, self.weights = cast(WeightsNew, self.weights), None
        try:
            version, weights = self.delay.push(new.version, read_weights(new.handle))
            if version > self.engine.version:
                self.embedded.load_weights(weights, version)
            self._read_version, self._step = new.version, new.step
        except (CorruptSlot, BadWeights) as error:
            if new.version > self._bad_version:  # the ledger offers it again until there is a newer one
                self._bad_version = new.version
                self._log.warning("weights refused", version=new.version, why=str(error))
                self.event("weights", {"version": new.version, "refused": str(error)[:300]})
            return
        self.want()

    def _say(self, now: float) -> None:
        if self._load.due(now):
            self._load.look(now, self.engine.active, 0, self.engine.kv_use)
        if body := self._load.report(now):
            body |= {"slots": self.config.slots, "limit": self.limit, "slot": self.settings.slot}
            self.event("throughput", {**body, "version": self.engine.version})
