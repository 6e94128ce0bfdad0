"""reward: scores trajectories with the user's `reward_fn`, in worker processes with limits; its `interact` answers.

Takes   `score.jobs` (conversations under lease), `knob.apply`, `ok`.
Sends   `want`, `scores` (a verdict, the user's program at fault, or what the tools said), `give.back` (our own fault:
        never a reward of 0).
Stores  nothing.
Dies    any time, its workers with it; its leases return to the ledger. A reward file that cannot be imported ends it
        at start, with the line at fault.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, cast

import structlog

from midflight.kernel.mail import Bus
from midflight.kernel.node import Letter, handles
from midflight.kernel.settings import Settings
from midflight.kernel.spec import knob_prefix, live_knobs, with_live
from midflight.messages.base import Scalar
from midflight.messages.knobs import KnobDeclaration
from midflight.messages.samples import GiveBack, Said, Score, ScoreJob, ScoreJobs, Scores, Stage
from midflight.messages.wire import MAX_BODY
from midflight.services.lease.worker import Worker

from . import environments
from .config import RewardConfig
from .pool import Pool
from .process import Spec
from .sandbox.ladder import chosen
from .sandbox.levels import SEALED
from .sandbox.program import is_text
from .sandbox.remote import RemotePool
from .verdict import Acted, InfrastructureFault, Job, ProgramFault, RewardFileError, Scored, Verdict

PIECE_SCORES = 512
MOST_SAID = MAX_BODY // 4
"""Bytes of all that the tools said in a message; the rest of it is far less."""
MOST_MESSAGES = 64
SCORE_BYTES = 80
"""Of a score in a message, without what is in it."""
START_S = 60.0
START_ENVIRONMENT_S = 600.0
"""Seconds that importing the reward file may take; verifiers and OpenEnv bring some hundred packages."""
REST_S = 1.0
"""Without new work after a fault of ours that the next sample would meet too."""
EMPTY = memoryview(b"")


class Reward(Worker):
    """The pool behind the lease protocol."""

    STAGE: ClassVar[Stage] = "score"

    def __init__(self, identity: str, bus: Bus, settings: Settings) -> None:
        super().__init__(identity, bus)
        self.settings = settings
        self.config = cast(RewardConfig, settings.config)
        self._declared = live_knobs(self.config, settings.slot)
        self._working: dict[int, int] = {}
        """sample -> epoch of the lease under which the pool has it."""
        self._later: dict[int, tuple[int, Job]] = {}
        """sample -> (epoch, job): leased again while an earlier try of it still runs."""
        self._solo = False
        self._rest_until = 0.0
        self._level = ""
        self._log = structlog.get_logger()
        self._pool: Pool | RemotePool | None = None
        self._scratch: Path | None = None

    @property
    def pool(self) -> Pool | RemotePool:
        """The worker pool; there from the start on."""
        assert self._pool is not None
        return self._pool

    def knobs(self) -> tuple[KnobDeclaration, ...]:
        """The live fields of its configuration."""
        return self._declared

    def apply_knob(self, name: str, value: Scalar) -> int:
        """For the next call, and the next request for work; -> the newest policy version, for it knows no steps."""
        self.config = with_live(self.config, name.removeprefix(knob_prefix(self.settings.slot)), value)
        if self._pool:
            self._pool.limit(self.config.time_limit_s)
            self._pool.hold(self.config.queue)
        return max(0, self.holding.version)

    def start(self) -> None:
        """Start the workers."""
        config = self.config
        scratch = own_folder(self.settings.run_dir / "scratch" / self.settings.name)
        self._scratch = scratch
        spec = Spec(
            _file(config, scratch),
            time_limit_s=config.time_limit_s,
            memory_bytes=config.worker_memory_mb << 20,
            env=tuple(config.pass_env),
            python_path=self.settings.python_path,
            scratch=scratch,
            level=chosen(config.isolation, trusted=config.vouched, network=config.network),
            network=config.network,
        )
        if config.file and config.has_interact and self.settings.slot_of_kind("ledger").get("max_turns", 1) == 1:
            text = f"{config.file} defines interact(messages), which is never called: ledger.max_turns is 1"
            self.event("note", {"level": "warning", "text": text})
        self._level = f"{spec.level}+network" if config.network and spec.level in SEALED else spec.level
        if config.remote:
            self._pool = RemotePool(spec, config.remote, calls=config.workers, capacity=config.queue)
        else:
            limit = START_ENVIRONMENT_S if config.environment else START_S
            self._pool = Pool(spec, workers=config.workers, capacity=config.queue, start_limit_s=limit)
        self.pool.tick(self.bus.now())

    def watches(self) -> dict[int, Callable[[], None]]:
        """The pool's one descriptor: something to read, or a worker that died."""
        return {self._pool.fileno(): self._heard} if self._pool else {}

    def work(self, now: float) -> bool:
        """Deadlines of calls, and new workers for dead ones."""
        if now >= self.pool.next_deadline():
            self._report(self.pool.tick(now))
        if self.pool.broken:
            raise RewardFileError(self.pool.broken)
        self.stats = {"held": len(self.holding.held), "faults": self.failures, "isolation": self._level}
        return False

    def want(self) -> None:
        """Ask for what fits into the queue."""
        stopped = self.draining or self._solo or self.bus.now() < self._rest_until
        self.holding.want(0 if stopped else self.config.queue - len(self.holding.held))

    def close(self) -> None:
        """End the workers."""
        if self._pool:
            self._pool.close()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)

    @handles(ScoreJobs)
    def _on_jobs(self, message: ScoreJobs, letter: Letter) -> None:
        views = letter.received.views()
        rows, texts, states = views["rows"], views["texts"], views.get("states", EMPTY)
        row_at = text_at = state_at = 0
        for job in message.jobs:
            row = bytes(rows[row_at : row_at + job.row_bytes])
            text = bytes(texts[text_at : text_at + job.text_bytes])
            state = bytes(states[state_at : state_at + job.state_bytes])
            row_at, text_at, state_at = row_at + job.row_bytes, text_at + job.text_bytes, state_at + job.state_bytes
            if not self.holding.take(job.id, job.epoch):
                continue
            self.holding.begin([job.id])
            self._solo = job.solo
            self._submit(job.epoch, _job(job, row, text, state))
        self.want()

    def _submit(self, epoch: int, job: Job) -> None:
        if job.id in self._working:
            self._later[job.id] = (epoch, job)
        elif self.pool.submit(job):
            self._working[job.id] = epoch
        else:
            self._give_back(job.id, "the reward queue is full")

    def _heard(self) -> None:
        self._report(self.pool.on_readable(self.bus.now()))

    def _report(self, verdicts: list[Verdict]) -> None:
        """Verdicts to the ledger; a fault of ours gives the lease back."""
        scores: list[Score] = []
        for verdict in verdicts:
            epoch = self._working.pop(verdict.id)
            later = self._later.pop(verdict.id, None)
            if later and self.holding.held.get(verdict.id) == later[0]:
                self._submit(*later)
            if self.holding.held.get(verdict.id) != epoch:  # the lease ended meanwhile; the ledger would call it stale
                continue
            match verdict.outcome:
                case Scored(rewards=rewards):
                    scores.append(Score(id=verdict.id, epoch=epoch, rewards=rewards))
                case Acted() as acted:
                    scores.append(_spoken(verdict.id, epoch, acted))
                case ProgramFault() as fault:
                    self.failures += 1
                    self._log.warning("reward_fn at fault", sample=verdict.id, blame=fault.blame, why=fault.why)
                    why = f"{fault.why}\n{fault.tail}"[:2000].encode(errors="replace").decode()
                    scores.append(Score(id=verdict.id, epoch=epoch, fault=why))
                case InfrastructureFault(why=why, strike=strike):
                    if not strike:
                        self._rest_until = self.bus.now() + REST_S
                    self._give_back(verdict.id, why, failed=not self.pool.broken, strike=strike)
        for part in _pieces(scores):
            self.progress += sum(score.fault is None for score in part)
            self.holding.hand_in([(score.id, score.epoch) for score in part], Scores(scores=part))
        if self._solo and scores:
            self._solo = False

    def _give_back(self, sample: int, why: str, *, failed: bool = False, strike: bool = False) -> None:
        lease = (sample, self.holding.held[sample])
        self._log.warning("sample given back", sample=sample, why=why)
        back = GiveBack(stage="score", leases=[list(lease)], why=why[:2000], failed=failed, strike=strike)
        self.holding.hand_in([lease], back)


def _job(job: ScoreJob, row: bytes, tail: bytes, state: bytes) -> Job:
    """What the pool is given to do. `call` names the turn, so that a tool can tell a second try from a first."""
    fields = json.loads(row)
    return Job(
        job.id,
        [*fields["messages"], *json.loads(tail)],
        fields.get("answer"),
        interact=job.interact,
        state=json.loads(state) if state else {},
        call=f"{job.id}:{job.turn}",
    )


def _spoken(sample: int, epoch: int, acted: Acted) -> Score:
    """What the tools said, or that it is more than a message holds."""
    said = [
        Said(role=one["role"], content=one["content"]) for one in acted.messages if len(one["content"]) <= MOST_SAID
    ]
    state = json.dumps(acted.state, ensure_ascii=False) if acted.state else ""
    if not state.isascii() and not is_text(state):
        return Score(id=sample, epoch=epoch, fault="interact left a state with half a surrogate pair, which is no text")
    score = Score.model_construct(id=sample, epoch=epoch, messages=said, state=state)
    if len(said) < len(acted.messages) or len(said) > MOST_MESSAGES or _size(score) > MOST_SAID:
        why = f"interact returned too much: at most {MOST_MESSAGES} messages and, with the state, {MOST_SAID} bytes fit"
        return Score(id=sample, epoch=epoch, fault=why)
    return score


def _size(score: Score) -> int:
    """Bytes it takes in a message, at most."""
    said = sum(len(one.content.encode()) + len(one.role.encode()) + 20 for one in score.messages)
    named = sum(len(name.encode()) + 12 for name in score.rewards)
    return SCORE_BYTES + len(score.state.encode()) + len((score.fault or "").encode()) + said + named


def _pieces(scores: list[Score]) -> Iterator[list[Score]]:
    """Runs that fit a message."""
    piece: list[Score] = []
    size = 0
    for score in scores:
        own = _size(score)
        if piece and (size + own > MOST_SAID or len(piece) >= PIECE_SCORES):
            yield piece
            piece, size = [], 0
        piece.append(score)
        size += own
    if piece:
        yield piece


def _file(config: RewardConfig, scratch: Path) -> Path:
    """The user's file, or the one written for the environment."""
    if config.file is not None:
        return Path(config.file)
    assert config.environment is not None
    path = scratch / "environment.py"
    path.write_text(environments.reward_file(config.environment, config.environment_args))
    return path


def own_folder(parent: Path) -> Path:
    """A new folder in `parent`, without those that killed predecessors left; one that still works keeps its own."""
    parent.mkdir(parents=True, exist_ok=True)
    for folder in parent.iterdir():
        if folder.name == str(os.getpid()) or not Path("/proc", folder.name).exists():
            shutil.rmtree(folder, ignore_errors=True)
    own = parent / str(os.getpid())
    own.mkdir()
    return own
