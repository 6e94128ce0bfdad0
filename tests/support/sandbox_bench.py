"""A pool of one sandbox under attack: each job's answer is code that runs inside `reward_fn`."""

import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from midflight.services.reward import Job, Pool, ProgramFault, Spec, Verdict
from midflight.services.reward.sandbox.ladder import missing
from midflight.services.reward.sandbox.levels import SEALED
from midflight.services.reward.verdict import Outcome

RUNS_THE_ANSWER = """
import os, resource, signal, socket, subprocess, sys, time
def reward_fn(messages, answer):
    got = {}
    exec(answer, {**globals(), "got": got})
    return got or 1.0
"""
_LACKS: dict[str, str] = {}


def need(level: str) -> None:
    """Skip a test where the level does not work, and say what is missing."""
    if level in SEALED and (why := _LACKS.setdefault(level, missing(level))):
        pytest.skip(f"{level}: {why}")


class Sandbox:
    """A pool and its waiting loop, on the real clock."""

    def __init__(self, folder: Path, level: str, code: str = RUNS_THE_ANSWER, workers: int = 1, **spec: object) -> None:
        need(level)
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        file = folder / "rewards.py"
        file.write_text(code)
        self.pool = Pool(Spec(file, scratch=self.scratch, level=level, **spec), workers)  # type: ignore[arg-type]
        self._poller = select.poll()
        self._poller.register(self.pool.fileno(), select.POLLIN)
        self._next = 0

    def score(self, *answers: object, within: float = 60.0) -> list[Outcome]:
        """The outcomes of jobs with these answers, in order."""
        first = self._next
        self._next += len(answers)
        for number, answer in enumerate(answers, first):
            assert self.pool.submit(Job(number, [], answer))
        found: dict[int, Outcome] = {}
        for verdicts in self._served(time.monotonic() + within):
            found |= {verdict.id: verdict.outcome for verdict in verdicts}
            if len(found) == len(answers):
                return [found[number] for number in range(first, first + len(answers))]
        raise AssertionError(f"{len(answers) - len(found)} verdicts are missing after {within} s: {self.pool.broken}")

    def verdicts(self, within: float) -> list[Verdict]:
        """The next verdicts there are."""
        return next((some for some in self._served(time.monotonic() + within) if some), [])

    def _served(self, deadline: float) -> Iterator[list]:  # type: ignore[type-arg]
        while time.monotonic() < deadline:
            yield self.pool.tick(time.monotonic())
            wait = min(deadline, self.pool.next_deadline()) - time.monotonic()
            self._poller.poll(max(0.0, wait) * 1000)

    def close(self) -> None:
        """End the pool; nothing of it may be left."""
        pids = self.pool.pids
        self.pool.close()
        assert list(self.scratch.iterdir()) == []
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def fault(outcome: Outcome) -> ProgramFault:
    """The outcome, which is the program's fault."""
    assert isinstance(outcome, ProgramFault), outcome
    return outcome
