"""One place in the pool: a worker process, or the wait for the next one, and the jobs it has been sent.

Its life: empty (until `start_at`) -> starting -> ready -> dead -> empty. At most one job has begun, the first sent.
Times are monotonic seconds, given by the caller; nothing here blocks.
"""

import json
import math
import select
from collections import deque
from dataclasses import dataclass
from typing import get_args

from .process import Frame, ProtocolError, Spec, WorkerProcess
from .sandbox.channel import ACTED, BEGIN, BROKEN, FAULT, LIMIT, MORE, READY, SCORED, frame
from .verdict import (
    Acted,
    Blame,
    InfrastructureFault,
    Job,
    Outcome,
    ProgramFault,
    Scored,
    checked_messages,
    checked_rewards,
)

_ABORT_GRACE = 0.2  # seconds between SIGABRT, which prints the worker's stack, and SIGKILL
_LONGEST_WAIT = 5.0  # seconds
_OWN_LIMIT = 5.0  # seconds that a sealed worker has, beyond the limit, to end the call itself and clean up
_BEGIN_LIMIT = 15.0  # seconds that a worker with nothing else to do may take to begin a job
_SIGKILLED = -9


_AT_ONCE = -math.inf
"""Deadline of a slot that was just sent its first job: the next `expire` learns what time it is."""


@dataclass(slots=True, eq=False)
class Sent:
    """A job on its way through the pool."""

    job: Job
    frame: bytes
    returned: int = 0
    """How many workers died before they began it."""
    suspect: bool = False
    """Whether a worker fell while running it for a reason that need not be the job's own."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one job; `doubtful` if a fresh worker may well do better."""

    sent: Sent
    outcome: Outcome
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Death:
    """What a dead worker leaves: at most one job to blame, jobs it never began, why it failed to start (or "")."""

    finding: Finding | None
    returned: list[Sent]
    start_failure: str


class Slot:
    """A place for one worker. Registers the worker's descriptors with the pool's `epoll`."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._fds: set[int] = set()
        self.worker: WorkerProcess | None = None
        self.sent: deque[Sent] = deque()
        self.start_at = -math.inf
        self.deadline = math.inf
        self.ready = self.begun = self._overdue = False
        self.refusal = self._violation = ""
        self._falls = 0
        self._limit = 0.0

    def start(self, spec: Spec, source: str, limit: float, now: float) -> None:
        """Start a worker, which has `limit` seconds to import the user's file.

        Raises:
            OSError: it could not be started; the slot waits for another attempt.
        """
        self.ready = self.begun = self._overdue = False
        self.refusal = self._violation = ""
        try:
            self.worker = WorkerProcess(spec, source)
        except OSError:
            self._vacate(now)
            raise
        self.deadline = now + limit
        self._fds = {self.worker.verdicts, self.worker.pidfd}
        for fd in self._fds:
            self._epoll.register(fd, select.EPOLLIN)

    def room(self, depth: int) -> bool:
        """Whether the worker takes another job while it may hold `depth`."""
        return self.ready and not self._overdue and not self._violation and len(self.sent) < depth

    def send(self, sent: Sent) -> None:
        """Send a job to the worker; only where there is `room`."""
        assert self.worker is not None
        if not self.sent:
            self.deadline = _AT_ONCE
        self.sent.append(sent)
        self.worker.send(sent.frame)

    def limit(self, seconds: float) -> None:
        """Let the jobs sent from now on take so long; the one that runs keeps its deadline."""
        if self.worker:
            self.worker.send(frame(LIMIT, body=json.dumps(seconds).encode()))

    def expire(self, now: float) -> None:
        """Past the deadline: first ask for the stack and death, then kill the group."""
        if self.worker is None or now < self.deadline:
            return
        if self.deadline == _AT_ONCE:
            self.deadline = now + _BEGIN_LIMIT
            return
        if self._overdue:
            self.worker.kill()
            self.deadline = math.inf
        else:
            self.worker.abort()
            self._overdue, self.deadline = True, now + _ABORT_GRACE

    def hear(self, ready: set[int], now: float, time_limit: float) -> list[Finding]:
        """Act on what the worker said, if one of its descriptors is among `ready`."""
        if self.worker is None or self._violation or self._fds.isdisjoint(ready):
            return []
        findings: list[Finding] = []
        try:
            for said in self.worker.receive():
                findings += self._act(said, now, time_limit)
        except (ProtocolError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            self._violation = f"{type(error).__name__}: {error!s:.100}"
            self.worker.kill()
        if self.worker.ended or self._violation:
            self._forget(self.worker.verdicts)
        self.worker.flush()
        return findings

    def _act(self, said: Frame, now: float, time_limit: float) -> list[Finding]:
        if self._overdue and not self.begun:
            return []  # it is dying of our signal; whatever it still begins goes to another worker
        if said.kind == READY:
            self.ready, self.deadline = True, math.inf
        elif said.kind == BROKEN:
            self.refusal = str(json.loads(said.body))
        elif said.kind == BEGIN:
            self._expect(said, begun=False)
            self.begun, self._limit, self.deadline = True, time_limit, now + time_limit
            if self.worker and self.worker.sealed:
                self.deadline += _OWN_LIMIT
        elif said.kind in (SCORED, ACTED, FAULT):
            self._expect(said, begun=True)
            finding = _finding(self.sent[0], said)
            self.sent.popleft()
            self.begun, self._falls = False, 0
            if not self._overdue:
                self.deadline = now + _BEGIN_LIMIT if self.sent else math.inf
            return [finding]
        elif said.kind != MORE:
            raise ProtocolError(f"a frame of kind {said.kind!r}")
        return []

    def _expect(self, said: Frame, *, begun: bool) -> None:
        if self.begun != begun or not self.sent or self.sent[0].job.id != said.job:
            raise ProtocolError(f"a frame of kind {said.kind!r} for job {said.job} out of turn")

    def died(self, ready: set[int]) -> bool:
        """Whether the worker's death is among the descriptors that are ready."""
        return self.worker is not None and self.worker.pidfd in ready

    def bury(self, now: float) -> Death:
        """Reap a dead worker with its group, remove its folder, and say what became of its jobs."""
        assert self.worker is not None
        tail, status = self.worker.output_tail(), self.worker.reap()
        for fd in tuple(self._fds):
            self._forget(fd)
        self.worker.close()
        finding = self._blame(status, tail) if self.begun else None
        if finding:
            self.sent.popleft()
        failure = "" if self.ready else self._start_failure(status, tail)
        returned = list(self.sent)
        self.sent.clear()
        self._vacate(now)
        return Death(finding, returned, failure)

    def _blame(self, status: int, tail: str) -> Finding:
        """Say what the job that has begun did to its worker. SIGKILL from outside is not clearly its doing."""
        sent = self.sent[0]
        if self._violation:
            return Finding(sent, ProgramFault("returned", f"wrote to the verdict channel ({self._violation})", tail))
        how = f"exited with status {status}" if status >= 0 else f"was killed by signal {-status}"
        if self.worker and self.worker.sealed:  # it ends calls itself, and they are other processes: who knows
            what = f"did not end the call after {self._limit:g} s" if self._overdue else f"{how} during the call"
            return Finding(sent, InfrastructureFault(f"the sandbox {what}", strike=True), doubtful=True)
        if self._overdue:
            return Finding(sent, ProgramFault("time", f"reward_fn gave no result within {self._limit:g} s", tail))
        fault = ProgramFault("exit", f"the worker process {how} while reward_fn ran", tail)
        return Finding(sent, fault, doubtful=status == _SIGKILLED)

    def _start_failure(self, status: int, tail: str) -> str:
        if self.refusal:
            return self.refusal
        what = "took too long to import the reward file" if self._overdue else f"ended with status {status}"
        return f"a reward worker {what} before it was ready{': ' + tail[-300:] if tail else ''}"

    def _forget(self, fd: int) -> None:
        if fd in self._fds:
            self._fds.discard(fd)
            self._epoll.unregister(fd)

    def _vacate(self, now: float) -> None:
        """The first replacement starts at once; after further deaths without a verdict the next ones wait longer."""
        self.worker, self.ready, self.begun, self.deadline = None, False, False, math.inf
        self._falls += 1
        self.start_at = now + (0.0 if self._falls == 1 else min(_LONGEST_WAIT, 0.05 * 2.0 ** min(self._falls, 20)))


def _finding(sent: Sent, said: Frame) -> Finding:
    """Check a worker's report, whoever wrote it there. Raises what `Slot.hear` catches if it is none."""
    report = json.loads(said.body)
    seconds = float(report["seconds"])
    if not 0 <= seconds < math.inf:
        raise ValueError("a time that is none")
    if said.kind == FAULT:
        if report["blame"] not in get_args(Blame):
            raise ValueError("a blame that is none")
        fault = ProgramFault(report["blame"], str(report["why"]), str(report["tail"]), seconds)
        return Finding(sent, fault, doubtful=bool(report.get("doubtful", fault.blame == "memory")))
    state = dict(report["state"])
    if said.kind == ACTED:
        return Finding(sent, Acted(checked_messages(report["messages"]), state, seconds))
    return Finding(sent, Scored(checked_rewards(report["rewards"]), seconds, state))


def send_ahead(seconds_per_job: float) -> int:
    """How many jobs a worker may hold: about 5 ms of work, so that few are delayed behind one that hangs."""
    return max(1, min(64, int(0.005 / max(seconds_per_job, 1e-9))))
