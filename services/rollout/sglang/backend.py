"""The servers as a backend: an asyncio loop in one thread of its own, and two queues between it and the service.

The service never waits for HTTP. What the thread has to tell lies in a queue, and the descriptor `fileno` is readable
when there is something in it.
"""

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from midflight.messages.shm import CorruptSlot
from midflight.messages.weights import WeightsNew
from midflight.services.rollout.forward import BadWeights
from midflight.services.rollout.request import Completion, Request
from midflight.services.rollout.stopping import Decode, StopText

from .config import SglangConfig
from .drive import Drive
from .job import Job
from .offered import check
from .outcome import BadOffer, Lost, Outcome, Took
from .pool import Pool

CLOSE_S = 10.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of the model without its weights: shapes by name, tied names, vocabulary, end tokens, its text."""

    tensors: Mapping[str, torch.Size]
    tied: frozenset[str]
    vocabulary: int
    end_ids: frozenset[int]
    decode: Decode


class Servers:
    """A `Backend`. `make_pool` is called in the thread; weights that are offered are laid into `folder`."""

    def __init__(self, config: SglangConfig, shape: Shape, folder: Path, make_pool: Callable[..., Pool]) -> None:
        self._config, self.shape, self._folder, self._make_pool = config, shape, folder, make_pool
        self.version = self._newest = -1
        self.serving = 0
        """Servers with verified weights."""
        self._held: set[int] = set()
        self._outcomes: deque[Outcome] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="servers", daemon=True)
        self._thread.start()
        self._started.wait()

    # the service's side

    @property
    def active(self) -> int:
        """Requests held."""
        return len(self._held)

    @property
    def free_slots(self) -> int:
        """How many more are taken now; none while no server has verified weights."""
        return max(0, self._config.slots - len(self._held)) if self.serving else 0

    @property
    def opened(self) -> bool:
        """Whether a server has answered, so that weights are of use."""
        return self._pool.opened

    @property
    def kv_use(self) -> float:
        """What the fullest server said a second ago; what it has no room for waits in it.

        The last word of a scheduler that has nothing to do is of the time when it had.
        """
        return self._pool.kv_use if self._held else 0.0

    def fileno(self) -> int:
        """Readable when `outcomes` has something."""
        return self._wake

    def add(self, request: Request) -> None:
        """Begin it. What SGLang would not survive, a token beyond the vocabulary, is refused here."""
        self._held.add(request.id)
        if why := self._problem(request):
            self._tell(Lost(request.id, why, refuse=True))
            return
        stop_text = StopText(self.shape.decode, request.stop) if request.stop else None
        stop_ids = tuple(sorted(self.shape.end_ids.union(request.stop_ids)))
        job = Job(request, stop_ids, self.shape.vocabulary, stop_text)
        self._call(lambda: self._submit(job))

    def offer(self, new: WeightsNew) -> None:
        """Check what was published, and bring the servers to it; answered by Took or BadOffer, unless a newer came."""
        self._newest = new.version
        self._call(lambda: self._spawn(self._take(new)))

    def step(self) -> list[Completion]:
        """What has been completed and is at the head of the queue."""
        done: list[Completion] = []
        while self._outcomes and isinstance(self._outcomes[0], Completion):
            completion = self._outcomes.popleft()
            assert isinstance(completion, Completion)
            self._held.discard(completion.id)
            done.append(completion)
        return done

    def other(self) -> Outcome | None:
        """The next outcome that is no completion, if it is its turn. Raises what the thread died of."""
        if not self._outcomes or isinstance(self._outcomes[0], Completion):
            return None
        outcome = self._outcomes.popleft()
        if isinstance(outcome, BaseException):
            raise outcome
        if isinstance(outcome, Lost):
            self._held.discard(outcome.id)
        return outcome

    def quiet(self) -> None:
        """The descriptor was seen; empty it before the queue."""
        os.eventfd_read(self._wake)

    def close(self) -> None:
        """End what was launched; back when that is done."""
        if self._thread.is_alive():
            self._call(self._stop.set)
            self._thread.join(CLOSE_S)

    def _problem(self, request: Request) -> str | None:
        if not request.prompt:
            return "the prompt is empty"
        if min(request.prompt) < 0 or max(request.prompt) >= self.shape.vocabulary:
            return f"a prompt token lies outside the vocabulary [0, {self.shape.vocabulary})"
        return None

    def _call(self, what: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: why is, or will be, in the queue
            self.loop.call_soon_threadsafe(what)

    # the thread's side

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            self._tell(error)
        finally:
            self._started.set()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._checking = asyncio.Lock()
        self._pool = self._make_pool(self._tell)
        self._drive = Drive(self._pool)
        self._started.set()
        run, stop = asyncio.ensure_future(self._pool.run()), asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({run, stop}, return_when=asyncio.FIRST_COMPLETED)
        if run.done():
            run.result()
        for task in (*self._tasks, run):
            task.cancel()
        await asyncio.gather(*self._tasks, run, return_exceptions=True)

    def _submit(self, job: Job) -> None:
        self._spawn(self._drive.job(job))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._tell(error)

    async def _take(self, new: WeightsNew) -> None:
        """One after the other, so that an older one cannot come second; what was overtaken while it waited is no more.

        The learner has removed it by then, which would look like damage.
        """
        async with self._checking:
            if new.version < self._newest:
                return
            keep = self._config.transfer != "disk"
            shape, loop = self.shape, asyncio.get_running_loop()
            try:
                offered = await loop.run_in_executor(
                    None, lambda: check(new, shape.tensors, set(shape.tied), self._folder, keep=keep)
                )
            except (CorruptSlot, BadWeights) as error:
                self._tell(BadOffer(new.version, str(error)))
                return
            self._tell(Took(new.version, new.step))
            await self._pool.offer(offered)

    def _tell(self, outcome: Outcome) -> None:
        if threading.current_thread() is self._thread and hasattr(self, "_pool"):
            self.version, self.serving = self._pool.version, len(self._pool.serving)
        self._outcomes.append(outcome)
        os.eventfd_write(self._wake, 1)
