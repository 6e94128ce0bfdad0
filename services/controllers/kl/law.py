"""The adaptive KL coefficient: a pure state machine over floats (features E1, algorithms section 3).

Four laws move the coefficient from one measured KL to the next; every result is clamped to [min_coef, max_coef]:

- exponential: coef *= exp_factor if kl > target, *= exp_decay if kl < target, unchanged if equal. The two steps
  differ, so the coefficient rests only when kl > target in a share ln(1/decay) / (ln factor + ln(1/decay)) of the
  updates: 25.4 % by default.
- linear: coef *= 1 + linear_factor * clip(kl/target - 1, -1, 1).
- pid, in velocity form with e = clip((kl - target)/target, -1, 5):
  coef += kp (e - e1) + ki e + kd (e - 2 e1 + e2). It equals coef0 + kp e + ki sum(e) + kd (e - e1) while
  unsaturated; since the clamped coefficient is the state, nothing winds up at the limits. On the first update
  e1 = e2 = e, so there is no kick.
- schedule: a function of the step alone, from initial_coef to min_coef over schedule_steps.

A batch's KL is a noisy estimate; with `smoothing` s the laws see m = s m + (1 - s) kl in its place.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

ControllerType = Literal["exponential", "linear", "pid", "schedule"]
ScheduleType = Literal["cosine", "linear", "exponential", "warmup_cosine"]

WARMUP_SHARE = 0.1
HISTORY = 100
NUMBERS = (
    "initial_coef",
    "target_kl",
    "min_coef",
    "max_coef",
    "exp_factor",
    "exp_decay",
    "linear_factor",
    "kp",
    "ki",
    "kd",
)


def _clip(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))


def schedule_value(kind: ScheduleType, start: float, end: float, step: float, steps: int) -> float:
    """Coefficient at `step` of a schedule from `start` to `end` over `steps` updates, constant afterwards.

    warmup_cosine rises linearly from 0 to `start` over the first tenth, then falls as a cosine (the shape of
    optax.warmup_cosine_decay_schedule); the caller clamps it to `end` from below.
    """
    share = _clip(step / steps, 0.0, 1.0)
    if kind == "linear":
        return start + (end - start) * share
    if kind == "exponential":
        return start * math.pow(end / start, share)
    if kind == "warmup_cosine":
        if share < WARMUP_SHARE:
            return start * share / WARMUP_SHARE
        share = (share - WARMUP_SHARE) / (1.0 - WARMUP_SHARE)
    return end + (start - end) * (1.0 + math.cos(math.pi * share)) / 2.0


@dataclass(slots=True)
class AdaptiveKLController:
    """Moves the KL coefficient so that the KL (nats per action token, global token mean of k3) meets `target_kl`.

    Raises ValueError at construction when a parameter makes no sense. A non-finite KL never moves the
    coefficient; it is counted in `nonfinite`.
    """

    initial_coef: float = 0.2
    target_kl: float = 0.01
    controller_type: ControllerType = "exponential"
    min_coef: float = 0.001
    max_coef: float = 10.0
    exp_factor: float = 1.03
    exp_decay: float = 0.99
    linear_factor: float = 0.5
    kp: float = 0.1
    ki: float = 0.01
    kd: float = 0.001
    schedule_type: ScheduleType = "cosine"
    schedule_steps: int = 1000
    smoothing: float = 0.0
    coef: float = field(init=False)
    step: int = field(init=False, default=0)
    nonfinite: int = field(init=False, default=0)
    history: deque[tuple[int, float, float]] = field(init=False, repr=False)
    _e1: float | None = field(init=False, default=None)
    _e2: float | None = field(init=False, default=None)
    _mean: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._check()
        self.coef = self.initial_coef
        self.history = deque(maxlen=HISTORY)

    def update(self, kl: float, step: int) -> float:
        """Take one measured KL at optimizer step `step` and return the coefficient for the next one."""
        if not math.isfinite(kl):
            self.nonfinite += 1
            return self.coef
        self.step = step
        self._mean = kl if self._mean is None else self.smoothing * self._mean + (1 - self.smoothing) * kl
        self.coef = _clip(self._next(self._mean, step), self.min_coef, self.max_coef)
        self.history.append((step, kl, self.coef))
        return self.coef

    def state_dict(self) -> dict[str, object]:
        """Return the state as plain values; a round trip through msgpack or JSON is exact."""
        return {
            "coef": self.coef,
            "e1": self._e1,
            "e2": self._e2,
            "mean": self._mean,
            "step": self.step,
            "nonfinite": self.nonfinite,
            "history": [list(entry) for entry in self.history],
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from `state_dict()`, also of another controller type. Raises ValueError, changing nothing."""
        try:
            coef, step, nonfinite = (cast(float, state[key]) for key in ("coef", "step", "nonfinite"))
            e1, e2 = (cast("float | None", state[key]) for key in ("e1", "e2"))
            mean = cast("float | None", state.get("mean"))
            rows = [(int(s), float(k), float(c)) for s, k, c in cast("list[list[float]]", state["history"])]
            finite = all(
                math.isfinite(x) for x in (coef, step, nonfinite, e1 or 0.0, e2 or 0.0, mean or 0.0, *sum(rows, ()))
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"state of the KL controller is incomplete or mistyped: {error!r}") from error
        if not finite or (e1 is None) != (e2 is None):
            raise ValueError("state of the KL controller holds a non-finite number or half a PID memory")
        self.coef = _clip(float(coef), self.min_coef, self.max_coef)
        self.step, self.nonfinite, self._e1, self._e2, self._mean = int(step), int(nonfinite), e1, e2, mean
        self.history = deque(rows, maxlen=HISTORY)

    def _next(self, kl: float, step: int) -> float:
        ratio = kl / self.target_kl
        if self.controller_type != "pid":  # so that a PID that goes on from here has no kick
            self._e1 = self._e2 = _clip(ratio - 1.0, -1.0, 5.0)
        if self.controller_type == "exponential":
            if kl == self.target_kl:
                return self.coef
            return self.coef * (self.exp_factor if kl > self.target_kl else self.exp_decay)
        if self.controller_type == "linear":
            return self.coef * (1.0 + self.linear_factor * _clip(ratio - 1.0, -1.0, 1.0))
        if self.controller_type == "pid":
            return self._pid(_clip((kl - self.target_kl) / self.target_kl, -1.0, 5.0))
        return schedule_value(self.schedule_type, self.initial_coef, self.min_coef, step, self.schedule_steps)

    def _pid(self, e: float) -> float:
        e1 = e if self._e1 is None else self._e1
        e2 = e if self._e2 is None else self._e2
        self._e1, self._e2 = e, e1
        return self.coef + self.kp * (e - e1) + self.ki * e + self.kd * (e - 2.0 * e1 + e2)

    def _check(self) -> None:
        for name, choices in (("controller_type", ControllerType), ("schedule_type", ScheduleType)):
            if getattr(self, name) not in get_args(choices):
                known = ", ".join(get_args(choices))
                raise ValueError(f"{name}: expected one of {known} (got {getattr(self, name)!r})")
        for name in NUMBERS:
            if not math.isfinite(getattr(self, name)) or getattr(self, name) < 0:
                raise ValueError(f"{name}: expected a finite number >= 0 (got {getattr(self, name)!r})")
        if self.target_kl == 0 or self.schedule_steps < 1:
            raise ValueError("target_kl and schedule_steps must be greater than 0")
        if not self.min_coef <= self.initial_coef <= self.max_coef:
            limits = f"[{self.min_coef}, {self.max_coef}]"
            raise ValueError(f"initial_coef: {self.initial_coef} lies outside [min_coef, max_coef] = {limits}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must lie in [0, 1) (got {self.smoothing})")
        if self.exp_factor < 1 or not 0 < self.exp_decay <= 1:
            raise ValueError("exp_factor must be >= 1 and exp_decay in (0, 1]")
        if self.schedule_type == "exponential" and self.controller_type == "schedule" and self.min_coef == 0:
            raise ValueError("an exponential schedule never reaches 0: give min_coef > 0")
