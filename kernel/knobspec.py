"""What a knob is: its type, unit, range and default, declared by the service that applies it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any, Literal, Self

from .refusal import Refusal

KnobKind = Literal["float", "int", "bool", "choice"]
Value = float | int | bool | str

INT_LIMIT = 2**62
"""Largest magnitude of an integer value; larger ones do not fit every decoder."""


@dataclass(frozen=True, slots=True)
class KnobSpec:
    """A declaration. Raises ValueError when it makes no sense, also when the default is out of range.

    `low` and `high` are inclusive; None leaves a side open. `applies` is the slot that puts the value into force and
    `when` says at which boundary it does, for people.
    """

    name: str
    kind: KnobKind
    default: Value
    unit: str = ""
    low: float | int | None = None
    high: float | int | None = None
    choices: tuple[str, ...] = ()
    live: bool = True
    applies: str = ""
    when: str = "next step"
    description: str = ""

    def __post_init__(self) -> None:
        for bound in (self.low, self.high):
            if bound is not None and not math.isfinite(bound):
                raise ValueError(f"knob {self.name}: a bound must be finite or None (got {bound})")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"knob {self.name}: low {self.low:g} is above high {self.high:g}")
        if (self.kind == "choice") != bool(self.choices):
            raise ValueError(f"knob {self.name}: choices belong to kind 'choice' and to no other")
        checked = self.check(self.default)
        if isinstance(checked, Refusal):
            raise ValueError(f"knob {self.name}: its default is refused: {checked.why}")
        object.__setattr__(self, "default", checked)

    def check(self, value: object) -> Value | Refusal:
        """Return the value in the knob's own type, or a refusal with code `type` or `range`."""
        if self.kind == "bool":
            return value if isinstance(value, bool) else self._refuse("type", value)
        if self.kind == "choice":
            return self._choice(value)
        if isinstance(value, bool) or not isinstance(value, int if self.kind == "int" else (int, float)):
            return self._refuse("type", value)
        if self.kind == "int":
            number: float | int = value
        else:
            try:
                number = float(value)
            except OverflowError:
                return self._refuse("range", value)
        inside = math.isfinite(number) and (self.kind == "float" or abs(number) <= INT_LIMIT)
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return number if inside and low <= number <= high else self._refuse("range", value)

    def takes(self) -> str:
        """What the knob accepts, for people: `a float from 0.001 to 10 nats`."""
        if self.kind == "bool":
            return "true or false"
        if self.kind == "choice":
            return "one of " + ", ".join(self.choices)
        parts = ["a finite float" if self.kind == "float" else "an int"]
        parts += [] if self.low is None else [f"from {self.low:g}"]
        parts += [] if self.high is None else [f"up to {self.high:g}"]
        return " ".join([*parts, self.unit]).strip()

    def dump(self) -> dict[str, Any]:
        """Return the declaration as plain values."""
        return {**asdict(self), "choices": list(self.choices)}

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Self:
        """Undo `dump`."""
        return cls(**{**state, "choices": tuple(state["choices"])})

    def _choice(self, value: object) -> Value | Refusal:
        if not isinstance(value, str):
            return self._refuse("type", value)
        if value in self.choices:
            return value
        near = get_close_matches(value, self.choices, 1)
        return self._refuse("range", value, f" - did you mean {near[0]!r}?" if near else "")

    def _refuse(self, code: str, value: object, hint: str = "") -> Refusal:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return Refusal(code, f"{self.name} takes {self.takes()} (got {shown}){hint}")
