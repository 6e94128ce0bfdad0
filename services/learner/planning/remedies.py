"""What would make a plan fit: changes of a few keys, each planned anew, not guessed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.training_config import TrainingConfig

from .plan import FILL, Plan, Planner, on_gpu

MOST_RANKS, DOUBLED = 1024, 4
HALVED = 4
"""What is tried stays a matter of seconds."""
SHORTEST = 16


@dataclass(frozen=True, slots=True)
class Remedy:
    """Keys to set, by their dotted path below `services`, and what the fullest device then needs, in bytes."""

    keys: dict[str, Any]
    needs: int
    fits: bool


def remedies(planner: Planner, found: Plan) -> list[Remedy]:
    """Those that fit, of one key each if there are any, else of several; else the one that comes nearest."""
    families = _families(planner.trainer, found)
    alone = [_tried(planner, family, {}) for family in families]
    alone += [one for one in (_slots(planner, found),) if one]
    if fitting := [one for one in alone if one and one.fits]:
        return fitting
    together: dict[str, Any] = {}
    for family in families:
        best = _tried(planner, family, together)
        if best and best.fits:
            return [best]
        together |= family[-1]
    least = [one for one in (*alone, _tried(planner, [together], {})) if one and one.needs < found.needs]
    return sorted(least, key=lambda one: one.needs)[:1]


def _families(trainer: TrainingConfig, found: Plan) -> list[list[dict[str, Any]]]:
    """Ways out, the cheapest first, each a list of ever larger changes."""
    layout = found.layout
    families: list[list[dict[str, Any]]] = []
    if not trainer.gradient_checkpointing:
        families.append([{"gradient_checkpointing": True}])
    elif trainer.recompute_every > 1:
        families.append([{"recompute_every": 1}])
    if trainer.ddp_size > 1:
        families.append([{"ddp_size": 1}])
    held = -(-found.tokens // layout.tensor)
    least = max(SHORTEST, -(-found.work.length // (layout.tensor * layout.sequence)))
    shorter = [held >> by for by in range(1, HALVED) if held >> by > least]
    if least < held:
        families.append([{"max_length_per_device": n} for n in (*shorter, least)])
    if not trainer.compile and trainer.kernels == "torch":
        config = found.network.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        families.append(_doubled("tp_size", layout.tensor, min(layout.ranks, heads)))
    families.append(_doubled("ranks", layout.ranks, min(MOST_RANKS, layout.ranks << DOUBLED)))
    if on_gpu(trainer.device):
        # Activations that are not recomputed would fill the host as they fill the GPU.
        keys = ("optimizer_offload", *(("activation_offload",) if trainer.gradient_checkpointing else ()))
        families += [[{key: True}] for key in keys if not getattr(trainer, key)]
    return [family for family in families if family]


def _doubled(key: str, value: int, most: int) -> list[dict[str, Any]]:
    return [{key: value << by} for by in range(1, 16) if value << by <= most]


def _tried(planner: Planner, family: Iterable[dict[str, Any]], with_: dict[str, Any]) -> Remedy | None:
    """The first of a family that fits, else its best, beside other changes."""
    best: Remedy | None = None
    for one in family:
        keys = {**with_, **one}
        try:
            plan = planner.plan(planner.trainer.model_copy(update=keys))
        except UserMistake:
            continue
        needs = plan.needs
        if best is None or needs < best.needs or plan.fits:
            best = Remedy({f"{planner.slot}.{key}": value for key, value in keys.items()}, needs, plan.fits)
        if plan.fits:
            break
    return best


def _slots(planner: Planner, found: Plan) -> Remedy | None:
    """Fewer sequences at a time in the rollout whose cache weighs most on the device that does not fit."""
    (device, *others) = [one for one in found.devices if not one.fits]
    caches = {name: term for name in planner.services for term in device.terms if term.name.startswith(f"{name}: keys")}
    if others or not caches or device.memory is None:
        return None
    name = max(caches, key=lambda one: caches[one].bytes)
    cache, slots = caches[name].bytes, planner.services[name].slots
    fewer = int(slots * (cache + FILL * device.memory - device.needs) / cache)
    if fewer < 1:
        return None
    return Remedy({f"{name}.slots": fewer}, device.needs - cache + cache * fewer // slots, fits=True)
