"""A pool of reward workers under test, and the reward file that does what each job's answer says."""

import select
import time
from collections.abc import Callable
from pathlib import Path

from midflight.services.reward import Job, Pool
from midflight.services.reward.verdict import Outcome

BY_ANSWER = """
    import os, signal, sys
    def tell(text):
        with open(os.path.dirname(__file__) + "/fifo", "w") as fifo:
            fifo.write(str(text))
    def reward_fn(messages, answer):
        exec(answer)
        return 1.0
"""
HANG = "tell('running'); signal.pause()"


class Bench:
    """A pool under test, served by events on the real clock; `skip` moves that clock forward."""

    def __init__(self, pool: Pool, scratch: Path, patience_s: float = 20.0) -> None:
        self.pool, self.scratch, self.patience_s, self._skipped = pool, scratch, patience_s, 0.0
        self.outcomes: dict[int, Outcome] = {}
        self.told = ""
        self._poller = select.poll()
        self._poller.register(pool.fileno(), select.POLLIN)

    def skip(self, seconds: float) -> None:
        """Let `seconds` pass at once."""
        self._skipped += seconds
        for verdict in self.pool.tick(time.monotonic() + self._skipped):
            assert verdict.id not in self.outcomes, "a second verdict for one job"
            self.outcomes[verdict.id] = verdict.outcome

    def until(self, done: Callable[[], bool]) -> None:
        """Serve until `done`; while no worker lives, skip to the start of the next."""
        while not done():
            if self.pool.pids:
                assert self._poller.poll(self.patience_s * 1000), f"nothing happened for {self.patience_s:g} s"
                self.skip(0.0)
            else:
                self.skip(max(0.0, self.pool.next_deadline() - time.monotonic() - self._skipped))

    def submit(self, *answers: object) -> None:
        """Submit jobs 0, 1, ... with these answers."""
        for number, answer in enumerate(answers, len(self.outcomes)):
            assert self.pool.submit(Job(number, [{"role": "user", "content": "hi"}], answer))

    def score(self, *answers: object) -> list[Outcome]:
        """Submit jobs and wait for all verdicts, in the order of the jobs."""
        known = len(self.outcomes)
        self.submit(*answers)
        self.until(lambda: len(self.outcomes) == known + len(answers))
        return [self.outcomes[number] for number in range(known, known + len(answers))]

    def begin(self, *answers: object) -> int:
        """Submit jobs and wait until the first of them tells; return its worker's pid."""
        self.submit(*answers)
        self.until(lambda: self.pool.ready > 0)
        self.told = (self.scratch.parent / "fifo").read_text()
        self.until(lambda: self.pool.busy > 0)
        return self.pool.pids[0]
