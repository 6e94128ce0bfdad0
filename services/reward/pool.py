"""A pool of warm worker processes that score samples with the user's `reward_fn`.

    pool = Pool(Spec(Path("rewards.py"), time_limit_s=5), workers=2)
    pool.tick(now)                    # starts the workers; call it again by pool.next_deadline()
    pool.submit(Job(7, messages, answer))
    poller.register(pool.fileno())    # readable: pool.on_readable(now) -> verdicts

Single-threaded and non-blocking. Every job accepted gets exactly one verdict, whatever happens to the workers, and is
blamed only for what happens while it runs. What may be the fault of a worn process or of the machine (out of memory,
SIGKILL from outside) is tried once more before the program is blamed; jobs that a dead worker had not begun go to
another. A user file that cannot be imported at the first start ends the pool, and `broken` says why.
"""

import json
import math
import select
from collections import deque
from dataclasses import replace

from .process import Spec
from .sandbox.channel import JOB, frame
from .sandbox.levels import SEALED, check
from .slot import Finding, Sent, Slot, send_ahead
from .source import read_source
from .verdict import InfrastructureFault, Job, Outcome, ProgramFault, Verdict

_LARGEST_JOB = 16 << 20  # bytes
_MOST_STARTS = 5  # failed starts in a row before waiting jobs are given up
_MOST_RETURNS = 5  # workers lost under a waiting job before it is given up
_SEALED_CALL_S = 0.002  # what a process of its own adds to a call
_CLOSING = 5.0  # seconds that SIGKILL may take


class Pool:
    """See the module. `capacity` bounds the jobs in the pool, waiting and running.

    Raises:
        RewardFileError: the file is missing or not Python; the text begins with its path.
        ValueError: the isolation level of `spec` is not available.
    """

    def __init__(self, spec: Spec, workers: int = 1, capacity: int = 4096, start_limit_s: float = 60.0) -> None:
        check(spec.level)
        self._spec, self._capacity, self._start_limit = spec, capacity, start_limit_s
        self._source = read_source(spec.file)
        self._epoll = select.epoll()
        self._slots = [Slot(self._epoll) for _ in range(workers)]
        self._waiting: deque[Sent] = deque()
        self._held: set[int] = set()
        self._verdicts: list[Verdict] = []
        self._failed_starts = 0
        self._ever_ready = False
        self._seconds_per_job = 0.001
        self.broken: str | None = None

    def fileno(self) -> int:
        """Return one descriptor that is readable whenever `on_readable` has something to do."""
        return self._epoll.fileno()

    @property
    def free(self) -> int:
        """How many more jobs `submit` takes."""
        return 0 if self.broken else self._capacity - len(self._held)

    @property
    def pids(self) -> list[int]:
        """The process ids of the living workers."""
        return [slot.worker.pid for slot in self._slots if slot.worker]

    @property
    def ready(self) -> int:
        """How many workers have imported the file and take jobs."""
        return sum(slot.ready for slot in self._slots)

    @property
    def busy(self) -> int:
        """How many workers have begun a job."""
        return sum(slot.begun for slot in self._slots)

    def limit(self, seconds: float) -> None:
        """From the next call on, the longest time of one."""
        self._spec = replace(self._spec, time_limit_s=seconds)
        for slot in self._slots:
            slot.limit(seconds)

    def hold(self, jobs: int) -> None:
        """Have room for at least so many; it never gets less, for they may be on their way."""
        self._capacity = max(self._capacity, jobs)

    def next_deadline(self) -> float:
        """Return when to call `tick` next, in monotonic seconds (infinity: not before an event)."""
        return min(slot.deadline if slot.worker or self.broken else slot.start_at for slot in self._slots)

    def submit(self, job: Job) -> bool:
        """Take a job, or return False if the pool is full or broken.

        Raises:
            ValueError: the id is in the pool already, or the job is too long.
            TypeError: the job is not JSON.
        """
        if self.free <= 0:
            return False
        if job.id in self._held:
            raise ValueError(f"job {job.id} is in the pool already")
        asked = {name: getattr(job, name) for name in ("messages", "answer", "interact", "state", "call")}
        body = json.dumps(asked).encode()
        if len(body) > _LARGEST_JOB:
            raise ValueError(f"job {job.id} has {len(body)} bytes; at most {_LARGEST_JOB} fit")
        self._held.add(job.id)
        self._waiting.append(Sent(job, frame(JOB, job.id, body)))
        self._dispatch()
        return True

    def on_readable(self, now: float) -> list[Verdict]:
        """Take what the workers say and bury those that died; return the new verdicts."""
        ready = {fd for fd, _ in self._epoll.poll(0)}
        for slot in self._slots:
            for finding in slot.hear(ready, now, self._spec.time_limit_s):
                self._settle(finding)
            if slot.ready:
                self._ever_ready, self._failed_starts = True, 0
            elif slot.refusal and not self._ever_ready:
                self._end(slot.refusal)
            if slot.died(ready):
                self._bury(slot, now)
        self._dispatch()
        return self._take()

    def tick(self, now: float) -> list[Verdict]:
        """Enforce deadlines and start missing workers; return the new verdicts."""
        verdicts = self.on_readable(now)  # a verdict that has arrived counts, even if its deadline has passed
        for slot in self._slots:
            slot.expire(now)
            if slot.worker is None and now >= slot.start_at and not self.broken:
                try:
                    slot.start(self._spec, self._source, self._start_limit, now)
                except OSError as error:
                    self._start_failed(f"a reward worker could not be started: {error}")
        return verdicts + self._take()

    def close(self) -> list[Verdict]:
        """Kill and reap every worker and remove its folder; jobs without a verdict get an `InfrastructureFault`."""
        self._end("the reward pool was closed")
        for slot in self._slots:
            if slot.worker:
                slot.worker.kill()
        for slot in self._slots:
            if slot.worker:
                death = select.poll()
                death.register(slot.worker.pidfd)
                if death.poll(_CLOSING * 1000):
                    self._bury(slot, math.inf)
        self._epoll.close()
        return self._take()

    def _take(self) -> list[Verdict]:
        verdicts, self._verdicts = self._verdicts, []
        return verdicts

    def _answer(self, sent: Sent, outcome: Outcome) -> None:
        """Give a job its verdict, unless it has one."""
        if sent.job.id in self._held:
            self._held.discard(sent.job.id)
            self._verdicts.append(Verdict(sent.job.id, outcome))

    def _settle(self, finding: Finding) -> None:
        """Answer a job, or give it its second chance."""
        outcome = finding.outcome
        if isinstance(outcome, ProgramFault) and outcome.blame == "unreachable" and self._spec.network:
            self._answer(finding.sent, InfrastructureFault(outcome.why))  # who was asked is away, or too busy
            return
        if not isinstance(outcome, InfrastructureFault):
            took = outcome.seconds + (_SEALED_CALL_S if self._spec.level in SEALED else 0.0)
            self._seconds_per_job += 0.2 * (took - self._seconds_per_job)
        if finding.doubtful and not finding.sent.suspect and not self.broken:
            finding.sent.suspect = True
            self._waiting.appendleft(finding.sent)
        else:
            self._answer(finding.sent, outcome)

    def _bury(self, slot: Slot, now: float) -> None:
        death = slot.bury(now)
        for sent in reversed(death.returned):
            sent.returned += 1
            if sent.returned > _MOST_RETURNS:
                self._answer(
                    sent,
                    InfrastructureFault(
                        f"{sent.returned} workers ended, by others' limits or by themselves, before this job began"
                    ),
                )
            elif sent.job.id in self._held:
                self._waiting.appendleft(sent)
        if death.finding:
            self._settle(death.finding)
        if death.start_failure:
            self._start_failed(death.start_failure)

    def _start_failed(self, why: str) -> None:
        """Count failed starts in a row; too many end the pool if it never worked, else the jobs that wait."""
        self._failed_starts += 1
        if self._failed_starts < _MOST_STARTS or any(slot.ready for slot in self._slots):
            return
        if self._ever_ready:
            self._give_up_waiting(why)
        else:
            self._end(why)

    def _end(self, why: str) -> None:
        """Take no more jobs and answer all there are; only the first reason counts."""
        self.broken = self.broken or why
        self._give_up_waiting(self.broken)
        for slot in self._slots:
            for sent in slot.sent:
                self._answer(sent, InfrastructureFault(self.broken))

    def _give_up_waiting(self, why: str) -> None:
        for sent in self._waiting:
            self._answer(sent, InfrastructureFault(why))
        self._waiting.clear()

    def _dispatch(self) -> None:
        """Send waiting jobs to the workers that hold fewest, each up to `send_ahead`."""
        depth = send_ahead(self._seconds_per_job)
        while self._waiting:
            able = [slot for slot in self._slots if slot.room(depth)]
            if not able:
                return
            min(able, key=lambda slot: len(slot.sent)).send(self._waiting.popleft())
