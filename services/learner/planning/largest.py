"""The largest micro-batch and the longest sample that fit their devices, by bisection over plans.

More samples, and longer ones, never need less memory, so that there is one place from which on they do not fit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from midflight.services.learner.training_config import TrainingConfig

from .devices import Device
from .memory import Term
from .plan import Plan, Planner
from .workload import layout_of, share, together

NOTCH = 16
"""Tokens of a sample between two lengths that are tried."""
LEAST = 16
"""Of `max_length_per_device`."""
MOST = 1 << 20
"""Tokens of a sample, where the model does not say how many it knows."""


@dataclass(frozen=True, slots=True)
class Largest:
    """One answer: so many samples in a micro-batch, or so many tokens in a sample, 0 when not even the least fits.

    keys: to set, by their dotted path below `services`. plan: with them. beyond: with `notch` samples, or tokens, more;
    None when there is no use for more.
    """

    what: Literal["micro-batch", "sample"]
    count: int
    keys: dict[str, Any]
    plan: Plan | None
    beyond: Plan | None
    notch: int = 1

    @property
    def needs(self) -> int:
        """Bytes of the fullest device."""
        return self.plan.needs if self.plan else 0

    @property
    def beyond_needs(self) -> int | None:
        """Bytes of the device that is too small beyond it."""
        return self._full.needs if self._full else None

    @property
    def stopped(self) -> Term | None:
        """What grew most there; all of it did, if not even the least fits."""
        if self._full is None:
            return None
        before = next((one for one in self.plan.devices if one.name == self._full.name), None) if self.plan else None
        was = {term.name: term.bytes for term in before.terms if term.counted} if before else {}
        counted = [term for term in self._full.terms if term.counted]
        return max(counted, key=lambda term: term.bytes - was.get(term.name, 0))

    @property
    def _full(self) -> Device | None:
        return next(device for device in self.beyond.devices if not device.fits) if self.beyond else None


def largest(planner: Planner) -> list[Largest]:
    """Of a micro-batch, when it is known how long samples are, and of a sample that is alone in one.

    The planner knows what memory its devices have. All other keys are as the topology has them.
    """
    rollouts = [spec.max_length for spec in rollouts_of(planner).values()]
    length = max(rollouts, default=planner.row)
    return [*([_batch(planner, length)] if length else []), _sample(planner)]


def rollouts_of(planner: Planner) -> dict[str, Any]:
    """By their slots, those that say how long a sample gets."""
    return {name: s for name, s in planner.services.items() if s.part == "rollout" and hasattr(s, "max_length")}


def last(holds: Callable[[int], bool], most: int) -> int:
    """The largest n of 1 to `most` for which it holds, 0 if for none; it holds up to one place and not behind it."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _batch(planner: Planner, length: int) -> Largest:
    """length: tokens of a sample."""
    trainer = planner.trainer

    def holding(count: int) -> TrainingConfig:
        return _holding(trainer, count * (length - together(trainer)))

    most = share(trainer, layout_of(trainer), planner.services)
    count = last(lambda n: planner.plan(holding(n)).fits, most)
    keys = {f"{planner.slot}.max_length_per_device": holding(count).max_length_per_device} if count else {}
    plan = planner.plan(holding(count)) if count else None
    return Largest("micro-batch", count, keys, plan, planner.plan(holding(count + 1)) if count < most else None)


def _sample(planner: Planner) -> Largest:
    trainer = planner.trainer

    def holding(notches: int) -> TrainingConfig:
        return _holding(trainer, notches * NOTCH - together(trainer))

    def planned(notches: int) -> Plan:
        return planner.plan(holding(notches), notches * NOTCH)

    most = getattr(planner.model.config, "max_position_embeddings", MOST) // NOTCH
    count = last(lambda n: planned(n).fits, most)
    keys: dict[str, Any] = {}
    if count:
        keys = {f"{name}.max_length": count * NOTCH for name in rollouts_of(planner)}
        keys[f"{planner.slot}.max_length_per_device"] = holding(count).max_length_per_device
    beyond = planned(count + 1) if count < most else None
    return Largest("sample", count * NOTCH, keys, planned(count) if count else None, beyond, NOTCH)


def _holding(trainer: TrainingConfig, positions: int) -> TrainingConfig:
    """With micro-batches of so many positions."""
    each = -(-positions // (trainer.tp_size * trainer.sp_size))
    return trainer.model_copy(update={"max_length_per_device": max(LEAST, each)})
