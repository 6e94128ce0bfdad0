"""When to start a service again, in OTP's words (Erlang/OTP, supervisor behaviour), with a backoff added.

permanent: always; transient: after an abnormal exit; temporary: never. More than `intensity` restarts within
`period_s` give up, and the reason is told. The n-th restart within the period waits min(backoff_max_s,
backoff_s * 2^(n-1)), jittered to 50-100 % of that; a period without an exit starts the count again. More than
`intensity` restarts in a row without any work done give up too, however long that took: who needs half a minute to fail
would otherwise fail for ever.
A process that ends with EXIT_MISTAKE is never started again: it would only repeat its reason.
"""

import random
import signal as signals
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .mistake import EXIT_MISTAKE

Kind = Literal["permanent", "transient", "temporary"]
Strategy = Literal["one_for_one", "rest_for_one", "one_for_all"]

TAIL = 1000


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended, as the warden saw it, and why the kernel killed it if it did.

    `code` is the exit code and None after a signal or when nobody saw it; `tail` the end of its raw output.
    """

    code: int | None = None
    signal: int | None = None
    tail: str = ""
    why: str = ""

    @property
    def normal(self) -> bool:
        """Whether it ended by itself with code 0."""
        return self.code == 0 and self.signal is None

    def text(self) -> str:
        """One line for people, e.g. `SIGKILL (silent for 2.1 s)` or `exit code 1: ImportError: no torch`."""
        if self.signal is not None:
            known = self.signal in signals.valid_signals()
            text = signals.Signals(self.signal).name if known and self.signal < 32 else f"signal {self.signal}"
        else:
            text = "unknown exit" if self.code is None else f"exit code {self.code}"
        if self.why:
            text += f" ({self.why})"
        return f"{text}: {self.last_words}" if self.last_words else text

    @property
    def last_words(self) -> str:
        """The last line of its output."""
        return self.tail.strip().rsplit("\n", 1)[-1].strip()[-TAIL:]


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again after this many seconds."""

    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not start it again: it fails too often, or for a reason that no restart mends (`mistake`)."""

    why: str
    mistake: bool = False


@dataclass(frozen=True, slots=True)
class Leave:
    """It has left, as its policy allows."""


Decision = Restart | GiveUp | Leave


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """One child's restart rule. Times in seconds; `intensity` 0 never restarts."""

    restart: Kind = "permanent"
    intensity: int = 5
    period_s: float = 60.0
    backoff_s: float = 0.05
    backoff_max_s: float = 5.0

    def recent(self, history: Sequence[float], now: float) -> list[float]:
        """The exits of `history` (monotonic s) that still count at `now`."""
        return [at for at in history if now - at < self.period_s]

    def decide(
        self, history: Sequence[float], ended: Exit, now: float, rng: random.Random, barren: Sequence[float] = ()
    ) -> Decision:
        """What follows the exit `ended` at `now`, given the times of the counted exits before it.

        barren: of those in a row whose lives, like the one that has ended now, did no work.
        """
        if ended.code == EXIT_MISTAKE:
            return GiveUp(ended.last_words or ended.text(), mistake=True)
        if self.restart == "temporary" or (self.restart == "transient" and ended.normal):
            return Leave()
        recent = self.recent(history, now)
        for before, limit in ((recent, f"in {self.period_s:g} s"), (barren, "without any work done")):
            if len(before) >= self.intensity:
                count = len(before) + 1
                times = "exit" if count == 1 else f"exits in {now - min(before):.1f} s"
                most = f"(at most {self.intensity} restarts {limit})"
                return GiveUp(f"gave up after {count} {times} {most}; last: {ended.text()}")
        pause = min(self.backoff_max_s, self.backoff_s * 2.0 ** min(len(recent), 60))
        return Restart(pause * rng.uniform(0.5, 1.0))
