"""When the kernel is hung, when it starts again and when to give up. A pure state machine of the warden's.

Times are monotonic seconds, given by the caller. Standard library only.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class KernelWatch:
    """One-for-one supervision of the kernel.

    At most `restarts` restarts in `window_s` seconds, and at most `crashes` in `crash_window_s` after ends of its own
    doing: what it does by itself it will do again.
    """

    watchdog_s: float = 10.0
    start_grace_s: float = 30.0
    restarts: int = 20
    window_s: float = 10.0
    crashes: int = 5
    crash_window_s: float = 60.0
    deadline: float = float("inf")
    proven: bool = False
    deaths: list[float] = field(default_factory=list)
    crashed: list[float] = field(default_factory=list)

    def started(self, now: float) -> None:
        """A kernel was started and has the start grace to ping once."""
        self.proven, self.deadline = False, now + self.start_grace_s

    def pinged(self, now: float) -> None:
        """The kernel proved that its loop turns."""
        self.proven, self.deadline = True, now + self.watchdog_s

    def give_back(self, seconds: float) -> None:
        """The warden itself did not run for so long, and a silence heard by nobody proves nothing."""
        self.deadline += seconds

    def hung(self, now: float) -> bool:
        """Whether the kernel owes a ping."""
        return now > self.deadline

    def died(self, now: float, by_itself: bool = False) -> float | None:
        """Seconds to wait before the next start, 0 the first time; None: give up.

        by_itself: it ended with an error, and was not killed.

        Old deaths are forgiven only to a kernel that has pinged: one that fails slowly at each start is a storm too.
        """
        if self.proven:
            self.deaths = [death for death in self.deaths if now - death < self.window_s]
        self.deaths.append(now)
        if by_itself:
            self.crashed = [*(crash for crash in self.crashed if now - crash < self.crash_window_s), now]
        if len(self.deaths) > self.restarts or len(self.crashed) > self.crashes:
            return None
        return min(0.02 * (len(self.deaths) - 1), 0.1)
