"""What would make a plan fit: changes of a few keys, each planned anew, not guessed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.training_config import TrainingConfig

from .devices import Device, cards_of, engine_of
from .plan import FILL, Plan, Planner, on_gpu
from .rollouts import Change, apart, changed, smaller

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
    """Those that fit, of one key each if there are any, else of several; else the one that comes nearest.

    Rollouts are made smaller where they are on a device that does not fit, and the trainer where it is on one.
    """
    services, trainer = planner.services, planner.trainer
    full = [device for device in found.devices if not device.fits]
    config = planner.model.config
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    rollouts = [family for device in full for family in smaller(services, device, heads)]
    moved = [family for device in full for family in apart(services, device, cards_of(trainer).stop)]
    own: list[list[Change]] = []
    if any(not engine_of(term.name, services) for device in full for term in device.terms):
        own = [[_of(planner.slot, one) for one in family] for family in _families(trainer, found, heads)]
    helpless = any(_rollouts_alone(services, device) for device in full)
    alone = [_tried(planner, family, {}) for family in (*moved, *rollouts, *([] if helpless else own))]
    if fitting := [one for one in alone if one and one.fits]:
        return fitting
    first = engine_of(full[0].largest.name, services)
    families = [*rollouts, *own] if first else [*own, *rollouts]
    together: Change = {}
    for family in families:
        best = _tried(planner, family, together)
        if best and best.fits:
            return [best]
        together |= family[-1]
    least = [one for one in (*alone, _tried(planner, [together], {})) if one and one.needs < found.needs]
    return sorted(least, key=lambda one: one.needs)[:1]


def _of(slot: str, fields: dict[str, Any]) -> Change:
    return {f"{slot}.{field}": value for field, value in fields.items()}


def _rollouts_alone(services: dict[str, Any], device: Device) -> bool:
    """Whether they do not fit it even without the trainer."""
    theirs = sum(term.bytes for term in device.terms if term.counted and engine_of(term.name, services))
    return device.memory is not None and theirs > FILL * device.memory


def _families(trainer: TrainingConfig, found: Plan, heads: int) -> list[list[dict[str, Any]]]:
    """The trainer's ways out, the cheapest first, each a list of ever larger changes of its fields."""
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
        families.append(_doubled("tp_size", layout.tensor, min(layout.ranks, heads)))
    families.append(_doubled("ranks", layout.ranks, min(MOST_RANKS, layout.ranks << DOUBLED)))
    if on_gpu(trainer.device):
        # Activations that are not recomputed would fill the host as they fill the GPU.
        keys = ("optimizer_offload", *(("activation_offload",) if trainer.gradient_checkpointing else ()))
        families += [[{key: True}] for key in keys if not getattr(trainer, key)]
    return [family for family in families if family]


def _doubled(key: str, value: int, most: int) -> list[dict[str, Any]]:
    return [{key: value << by} for by in range(1, 16) if value << by <= most]


def _tried(planner: Planner, family: Iterable[Change], with_: Change) -> Remedy | None:
    """The first of a family that fits, else its best, beside other changes."""
    best: Remedy | None = None
    for one in family:
        keys = {**with_, **one}
        try:
            services = changed(planner.services, keys)
            plan = planner.plan(services[planner.slot], services=services)
        except UserMistake:
            continue
        needs = plan.needs
        if best is None or needs < best.needs or plan.fits:
            best = Remedy(keys, needs, plan.fits)
        if plan.fits:
            break
    return best
