"""Limits on measured quantities, kept by multipliers: a pure state machine over floats (feature E2, algorithms 4).

A quantity m with the limit d is violated by e = m/d - 1 (at most d) or e = 1 - m/d (at least d). Its multiplier is the
coefficient of its term in the loss; no gradient passes through it. With E an exponential mean of e, every result being
clamped to [0, most]:

- projected: lam += lagrangian_lr E (projected dual ascent);
- log: lam *= exp(lagrangian_lr E), as SAC tunes its temperature (arXiv 1812.05905);
- augmented: lam as projected, and the coefficient is lam + mu e;
- pid: kp P + I + kd D with P the mean of e, I its integral, D its rise over `delay` updates (arXiv 2007.03964);
- penalty: mu [e]+, the gradient of a squared violation, without a memory.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

Method = Literal["projected", "log", "augmented", "pid", "penalty"]
Status = Literal["unknown", "satisfied", "violated", "infeasible"]

WINDOW = 50
"""Updates that decide whether a limit is kept."""
MEAN_EXCESS, FAR, FAR_SHARE = 0.05, 0.5, 0.1
"""A limit is kept when e is at most MEAN_EXCESS on average and above FAR in at most FAR_SHARE of the updates."""
LEAST_LOG = 1e-6
"""The log method never reaches 0, from which it would not return."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit > 0, in the unit of what is measured, on which side it lies, and the range of its multiplier."""

    limit: float
    at_most: bool = True
    initial: float = 0.0
    most: float = 100.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"a limit must be finite and greater than 0 (got {self.limit})")
        if not (0 <= self.initial <= self.most < math.inf):
            raise ValueError(f"a multiplier must begin within [0, most] (got {self.initial}, most {self.most})")

    def violation(self, measured: float) -> float:
        """How far past the limit, as a share of it; negative within."""
        share = measured / self.limit - 1.0
        return share if self.at_most else -share


@dataclass(slots=True)
class _Multiplier:
    value: float
    mean: float | None = None
    integral: float = 0.0
    slow: deque[float] = field(default_factory=deque)
    """The last `delay` values of `mean`."""
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))


@dataclass(slots=True)
class ConstraintOptimizer:
    """Moves one multiplier a constraint; see the module for the methods.

    Raises ValueError at construction when a parameter makes no sense. What is not finite moves nothing and is counted
    in `nonfinite`.
    """

    bounds: Mapping[str, Bound]
    method: Method = "projected"
    lagrangian_lr: float = 0.01
    mu: float = 0.1
    kp: float = 0.1
    ki: float = 0.01
    kd: float = 0.01
    delay: int = 10
    smoothing: float = 0.9
    step: int = field(init=False, default=0)
    nonfinite: int = field(init=False, default=0)
    _lam: dict[str, _Multiplier] = field(init=False, repr=False)
    _coef: dict[str, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"method: expected one of {', '.join(get_args(Method))} (got {self.method!r})")
        gains = (self.lagrangian_lr, self.mu, self.kp, self.ki, self.kd)
        if not all(math.isfinite(gain) and gain >= 0 for gain in gains):
            raise ValueError("lagrangian_lr, mu, kp, ki and kd must be finite and at least 0")
        if not (0 <= self.smoothing < 1 and self.delay >= 1 and self.bounds):
            raise ValueError("smoothing must lie in [0, 1), delay be at least 1, and a constraint must be given")
        self._lam = {name: _Multiplier(bound.initial, integral=bound.initial) for name, bound in self.bounds.items()}
        self._coef = {name: bound.initial for name, bound in self.bounds.items()}

    @property
    def coefficients(self) -> dict[str, float]:
        """What each term is to be multiplied by now."""
        return dict(self._coef)

    def update(self, measured: Mapping[str, float], step: int) -> dict[str, float]:
        """Take what was measured at `step`, by constraint; return the coefficients for the next step."""
        self.step = step
        for name, bound in self.bounds.items():
            value = measured[name]
            if math.isfinite(value):
                raw = self._next(self._lam[name], bound, bound.violation(value))
                self._coef[name] = max(0.0, min(bound.most, raw))
            else:
                self.nonfinite += 1
        return self.coefficients

    def status(self, name: str) -> Status:
        """Whether a limit is kept, by the last WINDOW updates; infeasible: not, with its coefficient at its most."""
        recent = self._lam[name].recent
        if not recent:
            return "unknown"
        far = sum(e > FAR for e in recent) / len(recent)
        if sum(recent) / len(recent) <= MEAN_EXCESS and far <= FAR_SHARE:
            return "satisfied"
        return "infeasible" if self._coef[name] >= self.bounds[name].most else "violated"

    def _next(self, lam: _Multiplier, bound: Bound, e: float) -> float:
        lam.recent.append(e)
        lam.mean = e if lam.mean is None else self.smoothing * lam.mean + (1 - self.smoothing) * e
        if self.method == "penalty":
            return self.mu * e
        if self.method == "pid":
            return self._pid(lam, bound, e)
        if self.method == "log":
            raised = max(lam.value, LEAST_LOG) * math.exp(min(self.lagrangian_lr * lam.mean, 50.0))
            lam.value = lam.integral = max(LEAST_LOG, min(bound.most, raised))
            return lam.value
        lam.value = lam.integral = max(0.0, min(bound.most, lam.value + self.lagrangian_lr * lam.mean))
        return lam.value + self.mu * e if self.method == "augmented" else lam.value

    def _pid(self, lam: _Multiplier, bound: Bound, e: float) -> float:
        mean = cast(float, lam.mean)
        lam.integral = max(0.0, min(bound.most, lam.integral + self.ki * e))
        rise = max(0.0, mean - lam.slow[0]) if lam.slow else 0.0
        lam.slow.append(mean)
        if len(lam.slow) > self.delay:
            lam.slow.popleft()
        lam.value = lam.integral
        return self.kp * mean + lam.integral + self.kd * rise

    def state_dict(self) -> dict[str, object]:
        """The state as plain values; a round trip through JSON is exact."""
        each = {
            name: {
                "value": lam.value,
                "coef": self._coef[name],
                "mean": lam.mean,
                "integral": lam.integral,
                "slow": list(lam.slow),
                "recent": list(lam.recent),
            }
            for name, lam in self._lam.items()
        }
        return {"constraints": each, "step": self.step, "nonfinite": self.nonfinite}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from `state_dict()`, also of another method; constraints it does not name begin anew.

        Raises ValueError, changing nothing.
        """
        try:
            each = cast("dict[str, dict[str, object]]", state["constraints"])
            known = {name: _read(each[name]) for name in self.bounds if name in each}
            step, nonfinite = int(cast(float, state["step"])), int(cast(float, state["nonfinite"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"state of the constraint controller is incomplete or mistyped: {error!r}") from error
        for name, (lam, coef) in known.items():
            most = self.bounds[name].most
            lam.value, lam.integral = min(most, lam.value), min(most, lam.integral)
            while len(lam.slow) > self.delay:
                lam.slow.popleft()
            self._lam[name], self._coef[name] = lam, max(0.0, min(most, coef))
        self.step, self.nonfinite = step, nonfinite


def _read(saved: Mapping[str, object]) -> tuple[_Multiplier, float]:
    value, coef, integral = (float(cast(float, saved[key])) for key in ("value", "coef", "integral"))
    mean = None if saved["mean"] is None else float(cast(float, saved["mean"]))
    slow, recent = ([float(e) for e in cast("list[float]", saved[key])] for key in ("slow", "recent"))
    if not all(math.isfinite(x) for x in (value, coef, integral, mean or 0.0, *slow, *recent)):
        raise ValueError("a number in it is not finite")
    return _Multiplier(max(0.0, value), mean, max(0.0, integral), deque(slow), deque(recent, WINDOW)), coef
