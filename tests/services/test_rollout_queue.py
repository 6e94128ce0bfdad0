"""Two replicas that are not alike: what one cannot begin soon is for the other. The real ledger, on a virtual clock."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.chaos_config import FAST, ConsumerConfig, ScorerConfig
from support.chaos_consumer import Consumer
from support.chaos_services import Item, Scorer
from support.sim import SimBus, World

from midflight.kernel.mail import Bus
from midflight.kernel.node import Letter, Node, handles
from midflight.kernel.settings import Settings
from midflight.kernel.spec import ServiceSpec
from midflight.messages.samples import Batch, ScoreJobs
from midflight.services.ledger.config import LedgerConfig
from midflight.services.ledger.service import Ledger
from midflight.services.model.tokenizer import byte_tokenizer
from midflight.services.rollout.config import RolloutConfig
from midflight.services.rollout.request import Completion, Request
from midflight.services.rollout.service import Rollout

KINDS = {"ledger": "ledger", "slow": "rollout", "quick": "rollout", "reward": "reward", "learner": "learner"}
SECONDS = {"slow": 5.0, "quick": 0.2}
"""Of one response."""
LOOK_S = 0.02
"""So often they look whether a response is done."""
SCARCE, AMPLE = 2, 30
"""Batches of 16 samples that may be generated ahead: fewer than there are slots, and many more."""


class Timed:
    """A backend whose every response takes so many seconds of the bus's clock, however many run."""

    kv_use = 0.0

    def __init__(self, bus: Bus, slots: int, seconds: float) -> None:
        self.version, self._bus, self._slots, self._seconds = -1, bus, slots, seconds
        self._running: list[tuple[float, Request]] = []

    @property
    def active(self) -> int:
        """Requests running."""
        return len(self._running)

    @property
    def free_slots(self) -> int:
        """How many more may."""
        return self._slots - self.active

    def add(self, request: Request) -> None:
        """Begin it."""
        self._running.append((self._bus.now() + self._seconds, request))

    def step(self) -> list[Completion]:
        """What has taken its time."""
        now = self._bus.now()
        done = [request for at, request in self._running if at <= now]
        self._running = [(at, request) for at, request in self._running if at > now]
        return [Completion(one.id, [70], [-1.0], [self.version], "length") for one in done]


class Player(Rollout):
    """The service as it is, but for the model."""

    most_queued = 0

    def start(self) -> None:
        self.tokenizer = byte_tokenizer()
        self.engine = Timed(self.bus, self.config.slots, SECONDS[self.settings.slot])

    def _swap(self) -> None:
        assert self.weights
        assert isinstance(self.engine, Timed)
        self.engine.version, self.weights = self.weights.version, None
        self.want()

    def _busy(self) -> bool:
        return False

    def on_turn(self, now: float) -> float:
        return min(super().on_turn(now), LOOK_S)

    def work(self, now: float) -> bool:
        busy = super().work(now)
        self.most_queued = max(self.most_queued, len(self.queue))
        return busy


class Anyway(Scorer):
    """Scores any text."""

    @handles(ScoreJobs)
    def _on_jobs(self, message: ScoreJobs, letter: Letter) -> None:
        for job in message.jobs:
            self.admit(Item(job.id, job.epoch, job.solo))


class Trainer(Consumer):
    """Trains on any tokens, of batches in one piece."""

    @handles(Batch)
    def _on_batch(self, message: Batch, letter: Letter) -> None:
        leases = [(part.id, part.epoch) for part in message.parts]
        fresh = [self.holding.take(sample, epoch) for sample, epoch in leases]
        if any(fresh):
            self.whole.append((message.batch, leases))


def specs(ahead: int) -> dict[str, ServiceSpec]:
    """Each rollout has as many slots as there are samples in two batches."""
    common: dict[str, Any] = {**FAST, "depends_on": ["ledger"]}
    ledger = {
        "data": {"train": "task:rev6-10?rows=4000"},
        "prompts_per_rollout": 4,
        "responses_per_prompt": 4,
        "max_lag": 1000,
        "version_slack": 1000,
        "max_staleness": ahead,
    }
    return {
        "ledger": LedgerConfig.model_validate({**FAST, **ledger}),
        "slow": RolloutConfig.model_validate({**common, "slots": 32, "max_length": 64}),
        "quick": RolloutConfig.model_validate({**common, "slots": 32, "max_length": 64}),
        "reward": ScorerConfig.model_validate({**common, "slots": 32}),
        "learner": ConsumerConfig.model_validate({**common, "step_s": 0.05}),
    }


def play(seed: int, folder: Path, ahead: int, until: float) -> dict[str, Any]:
    """A run of so many virtual seconds; -> its services by name."""
    configs, made = specs(ahead), {}

    def make(kind: type[Any], slot: str, identity: str, bus: SimBus) -> Node:
        settings = Settings(
            run_dir=folder, run_id="sim-00000000", name=slot, slot=slot, entry="", config=configs[slot], model={},
            seed=seed, python_path=(), endpoints={}, shm_dir=folder, kinds=KINDS,
        )  # fmt: skip
        made[slot] = kind(identity, bus, settings)
        return made[slot]  # type: ignore[no-any-return]

    kinds = {"ledger": Ledger, "slow": Player, "quick": Player, "reward": Anyway, "learner": Trainer}
    run = World(seed, configs, {slot: partial(make, kind, slot) for slot, kind in kinds.items()})
    run.run(until)
    assert not run.faults
    return made


@pytest.mark.parametrize("seed", range(2))
def test_a_slow_replica_queues_nothing_that_another_could_begin(seed: int, tmp_path: Path) -> None:
    """It holds what it runs, and the little that it will have finished by the time more could come."""
    made = play(seed, tmp_path, SCARCE, 18.0)
    slow, quick = made["slow"], made["quick"]
    assert slow.progress >= 32
    assert slow.most_queued <= 1
    assert quick.progress > slow.progress


def test_a_quick_replica_has_a_queue_so_that_no_slot_waits(tmp_path: Path) -> None:
    """A quarter of its slots at most."""
    made = play(0, tmp_path, AMPLE, 6.0)
    quick = made["quick"]
    assert 1 < quick.most_queued <= quick.limit // 4
