"""sglang: turns tickets into trajectories on SGLang servers, with the newest policy they were verified to have.

Takes   `tickets`, `weights.new` (given to every server in mid-generation), `knob.apply`, `ok`.
Sends   `want`, `trajectories`, `sample.refuse`, `give.back`, as every rollout; the version in `want` is that of the
        server which is furthest behind.
Stores  in the run's shared memory, at which URLs there was a server; weights are linked there too. What launched
        servers print goes to the run's logs.
Dies    any time, and what it launched with it. A server that dies, or whose update failed, is replaced or left out,
        and what it had in hand is generated elsewhere or given back.
"""

from collections.abc import Callable
from pathlib import Path
from typing import cast

from midflight.messages.samples import GiveBack, Refuse
from midflight.messages.weights import WeightsNew
from midflight.services.model.build import save_model
from midflight.services.model.chat import raw
from midflight.services.model.open import end_ids, open_frame, open_model
from midflight.services.model.tokenizer import Tokenizer
from midflight.services.rollout.service import Rollout

from . import command
from .backend import Servers, Shape
from .config import SglangConfig
from .known import Known
from .outcome import BadOffer, Lost, Outcome, Said, Took
from .places import look, make_places
from .pool import Pool


class Sglang(Rollout):
    """The lease protocol of every rollout, and servers as its backend."""

    engine: Servers

    def start(self) -> None:
        """Begin to launch the servers; it is ready when one can be given weights."""
        config = cast(SglangConfig, self.config)
        look(config)
        with self.phase("load model", 600):
            self.settings.shm_dir.mkdir(parents=True, exist_ok=True)
            folder = self.settings.shm_dir / f"sglang-{self.identity.replace('#', '-')}"
            folder.mkdir(exist_ok=True)
            self.tokenizer, shape, path = self._model(folder, config)
        dtype = self.settings.model.get("dtype") or "float32"
        model = command.Model(path, dtype, config.max_length)
        places, router = make_places(config, model, self.settings.run_dir / "logs", self.settings.name)
        known = Known(self.settings.shm_dir / f"sglang-{self.settings.name}.urls")
        self.engine = Servers(config, shape, folder, lambda tell: Pool(config, places, router, tell, known))

    def prepared(self) -> bool:
        """A server answers. Until then nobody else looks at what they tell, for in a swap it does not work yet."""
        self._hear()
        return self.engine.opened

    def _model(self, folder: Path, config: SglangConfig) -> tuple[Tokenizer, Shape, str]:
        """Tokenizer, what is known of the model, and what the servers load: a folder is written when it was built."""
        section = self.settings.model
        if path := section.get("path"):
            tokenizer, model = open_frame(section)
        else:
            tokenizer, model = open_model(section, self.settings.seed)
            path = str(folder / "model")
            save_model(model, tokenizer, path)
        tied = frozenset(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else ()
        shape = Shape(
            tensors={name: tensor.shape for name, tensor in model.state_dict().items()},
            tied=frozenset(tied),
            vocabulary=int(model.config.vocab_size),
            end_ids=frozenset(end_ids(tokenizer, model) | set(config.stop_token_ids)),
            decode=lambda ids: raw(tokenizer, ids),
        )
        return tokenizer, shape, str(path)

    def watches(self) -> dict[int, Callable[[], None]]:
        """Besides an actor's own: the servers have something to tell."""
        own = super().watches()
        return own | {self.engine.fileno(): self.engine.quiet} if self.started else own

    def on_turn(self, now: float) -> float:
        """In time for what is finished to leave."""
        wait = super().on_turn(now)
        return min(wait, max(0.0, self._flush_at - self.bus.now())) if self.finished else wait

    def want(self, taken: int = 0) -> None:
        """Nothing while no server has verified weights."""
        if self.engine.serving:
            super().want(taken)
        else:
            self.holding.want(0, self.engine.version)

    def close(self) -> None:
        """The servers end with the service."""
        if self.started:
            self.engine.close()

    def _tune(self) -> None:
        """A request carries what its knobs say."""

    def _swap(self) -> None:
        """Hand new weights to the servers; the answer comes later."""
        new, self.weights = cast(WeightsNew, self.weights), None
        self._read_version = new.version
        self.engine.offer(new)

    def work(self, now: float) -> bool:
        """Take in what the servers have to tell, then what every rollout does."""
        before = (self.engine.serving, self.engine.version)
        self._hear()
        busy = super().work(now)
        self.stats |= {"servers": self.engine.serving}
        if not self.engine.serving:
            self.waiting("a server with weights", None)
            self._return_queue()
        else:
            self.waited("a server with weights")
        if before != (self.engine.serving, self.engine.version):
            self.want()
        return busy

    def _busy(self) -> bool:
        """The descriptor wakes it."""
        return False

    def _hear(self) -> None:
        while True:
            for completion in self.engine.step():
                self._finish(completion)
            if (outcome := self.engine.other()) is None:
                return
            self._take(outcome)

    def _take(self, outcome: Outcome) -> None:
        match outcome:
            case Lost():
                self._lose(outcome)
            case BadOffer(version, why):
                self._read_version = min(self._read_version, version - 1)
                if version > self._bad_version:  # the ledger offers it again until there is a newer one
                    self._bad_version = version
                    self._log.warning("weights refused", version=version, why=why)
                    self.event("weights", {"version": version, "refused": why[:300]})
            case Took(_, step):
                self._step = step
            case Said(level, text):
                getattr(self._log, level)(text)

    def _lose(self, lost: Lost) -> None:
        """A lease that ends without a trajectory."""
        ticket = self.running.pop(lost.id).ticket
        lease = (ticket.id, ticket.epoch)
        if lost.refuse:
            self.failures += 1
            self.holding.hand_in([lease], Refuse(stage="generate", lease=list(lease), why=lost.why[:2000]))
        else:
            self.holding.hand_in([lease], GiveBack(stage="generate", leases=[list(lease)], why=lost.why[:2000]))

    def _return_queue(self) -> None:
        """Tickets that no server will begin soon are for another rollout."""
        if self.queue:
            leases = [(ticket.id, ticket.epoch) for ticket, *_ in self.queue]
            self.queue.clear()
            back = GiveBack(stage="generate", leases=[list(lease) for lease in leases], why="no server is ready")
            self.holding.hand_in(leases, back)
