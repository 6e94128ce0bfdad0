"""What may change while the ledger works: which values it refuses, and why. Pure but for reading the topology.

A new value holds from the next decision it is read for: what has been admitted, leased or batched stays so.
"""

import json
from collections.abc import Iterator
from typing import Any

from midflight.kernel.config.registry import service_class
from midflight.kernel.settings import Settings
from midflight.kernel.spec import with_live
from midflight.messages.base import Scalar

from .config import LedgerConfig, too_large


def changed(config: LedgerConfig, field: str, value: Scalar, settings: Settings) -> LedgerConfig:
    """The configuration with another value in a live field. Raises ValueError for one that cannot be used."""
    new = with_live(config, field, value)
    if field.startswith("evaluation.") and config.data.evaluation is None:
        raise ValueError("there are no held-out prompts to evaluate on: data.evaluation is not set")
    if field == "prompts_per_rollout":
        _check_batch(new, settings)
    known = set(_clashes(config, settings))
    for why in _clashes(new, settings):
        if why not in known:
            raise ValueError(why)
    return new


def _check_batch(config: LedgerConfig, settings: Settings) -> None:
    if config.deterministic:
        raise ValueError("deterministic: a batch is generated as one cohort, whose size is set before the run")
    prefetch = settings.slot_of_kind("learner").get("prefetch", 1) if _topology(settings) else 1
    if why := too_large(config, prefetch):
        raise ValueError(why)


def _clashes(config: LedgerConfig, settings: Settings) -> Iterator[str]:
    """What the other slots of the topology would have against it."""
    for slot, part in _topology(settings).items():
        if slot != settings.slot:
            spec = service_class(part["kind"]).model_validate(part)
            yield from (f"{slot}.{field}: {why}" for field, why in spec.conflicts({settings.slot: config}))


def _topology(settings: Settings) -> dict[str, Any]:
    try:
        services: dict[str, Any] = json.loads((settings.run_dir / "config.json").read_text())["services"]
    except FileNotFoundError:  # a ledger on its own, as in simulations
        return {}
    return services
