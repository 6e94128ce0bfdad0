"""Additive increase, multiplicative decrease (Chiu and Jain 1989) of how many requests run at once: a state machine.

A full KV cache, or requests that an engine holds and cannot run, mean too many: the limit falls to a part of itself.
It rises by a few while the cache has room, nothing is queued, and the limit is what keeps requests from running. In
between it stays, and it stays until a fall has shown: what runs is not aborted, so the cache empties only gradually.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

BINDING: Final = 0.9
"""The limit keeps requests from running when this part of it runs: a caller without work teaches nothing."""


@dataclass(frozen=True, slots=True)
class Load:
    """The most of a while, over all engines: requests running, requests queued inside an engine, share of the cache
    used, how many an engine could run, and how many it may."""

    active: float
    queued: float
    kv_use: float
    slots: float
    limit: float

    def with_(self, other: "Load") -> "Load":
        """The most of both."""
        mine, theirs = self.values(), other.values()
        return Load(*(max(one, two) for one, two in zip(mine, theirs, strict=True)))

    def values(self) -> tuple[float, ...]:
        """In their order."""
        return self.active, self.queued, self.kv_use, self.slots, self.limit


@dataclass(slots=True)
class AdaptiveConcurrency:
    """Moves a limit on concurrent requests within [least, most], and never above what an engine could run.

    It begins at the limit it finds, and is 0 before.
    increase: requests it rises by. decrease: what it falls to, as a part of itself. kv_low, kv_high: share of the cache
    below which it rises, above which it falls. queue_high: queued requests, as a part of the limit, beyond which it
    falls. Raises ValueError at construction when they make no sense. A load that is not finite moves nothing and is
    counted in `nonfinite`.
    """

    least: int = 1
    most: int = 4096
    increase: int = 2
    decrease: float = 0.7
    kv_low: float = 0.75
    kv_high: float = 0.9
    queue_high: float = 0.1
    value: int = field(init=False, default=0)
    step: int = field(init=False, default=0)
    nonfinite: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"least {self.least} must be at least 1 and not exceed most {self.most}")
        if self.increase < 1 or not 0 < self.decrease < 1:
            raise ValueError("increase must be at least 1, and decrease lie between 0 and 1")
        if not (0 < self.kv_low < self.kv_high and 0 <= self.queue_high < math.inf):
            raise ValueError("kv_low must be greater than 0 and less than kv_high, and queue_high at least 0")

    def update(self, load: Load, step: int = 0) -> int:
        """Take the load since the last update and return the limit to use next."""
        if not all(math.isfinite(value) for value in load.values()):
            self.nonfinite += 1
            return self.value
        self.step = step
        ceiling = max(self.least, min(self.most, int(load.slots)))
        self.value = min(max(self.value or int(load.limit), self.least), ceiling)
        if load.active > self.value:  # an earlier fall has yet to show
            return self.value
        if load.kv_use > self.kv_high or load.queued > self.queue_high * self.value:
            self.value = max(self.least, math.floor(self.value * self.decrease))
        elif load.kv_use < self.kv_low and load.queued == 0 and load.active >= BINDING * self.value:
            self.value = min(ceiling, self.value + self.increase)
        return self.value

    def state_dict(self) -> dict[str, object]:
        """The state as plain values."""
        return {"value": self.value, "step": self.step, "nonfinite": self.nonfinite}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from `state_dict()`. Raises ValueError, changing nothing."""
        try:
            value, step, nonfinite = (int(cast(int, state[key])) for key in ("value", "step", "nonfinite"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"state of the concurrency controller is incomplete or mistyped: {error!r}") from error
        if value < 0:
            raise ValueError(f"state of the concurrency controller holds the limit {value}")
        self.value = max(self.least, min(self.most, value)) if value else 0
        self.step, self.nonfinite = step, nonfinite
