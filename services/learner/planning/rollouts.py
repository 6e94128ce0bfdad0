"""Ways to make rollouts smaller on their device, or to have them on others; each is a list of ever larger changes.

A change is keys to set, by their dotted path below `services`.
"""

from collections.abc import Mapping
from typing import Any

from midflight.kernel.config.registry import service_class

from .devices import FILL, Device, engine_of, on_gpu

Change = dict[str, Any]
HALVED = 3
MOST_CUTS = 64
SERVERS = "sglang"
"""The kind of rollout that can cut a model over GPUs."""


def changed(services: Mapping[str, Any], keys: Change) -> dict[str, Any]:
    """The slots with these values; one that becomes another kind keeps whatever both kinds have."""
    by_slot: dict[str, dict[str, Any]] = {}
    for path, value in keys.items():
        slot, _, field = path.partition(".")
        by_slot.setdefault(slot, {})[field] = value
    return {**services, **{slot: _with(services[slot], fields) for slot, fields in by_slot.items()}}


def _with(spec: Any, fields: Mapping[str, Any]) -> Any:
    if fields.get("kind", spec.kind) == spec.kind:
        return spec.model_copy(update=fields)
    kind = service_class(fields["kind"])
    kept = {name: value for name, value in spec.model_dump().items() if name in kind.model_fields}
    return kind.model_validate({**kept, **fields})


def smaller(services: Mapping[str, Any], device: Device, heads: int) -> list[list[Change]]:
    """For the rollouts on a device that does not fit: fewer sequences at a time, shorter ones, servers that cut the
    model over up to so many GPUs as it has heads."""
    found: list[list[Change]] = []
    for name, spec in _on(services, device).items():
        cut = getattr(spec, "tp_size", 1)
        cuts = [cut << by for by in range(1, 7) if cut << by <= min(MOST_CUTS, heads)]
        servers = {} if spec.kind == SERVERS else {f"{name}.kind": SERVERS}
        servers |= {f"{name}.device": "cuda"} if ":" in spec.device else {}
        if on_gpu(spec.device) and spec.kind in (SERVERS, "rollout"):
            found.append([{**servers, f"{name}.tp_size": n} for n in cuts])
        if (fewer := _slots(name, spec, device)) < spec.slots:
            found.append([{f"{name}.slots": fewer}])
        lengths = [spec.max_length >> by for by in range(1, HALVED + 1)]
        found.append([{f"{name}.max_length": n} for n in lengths if n > spec.max_new_tokens])
    return [family for family in found if family]


def apart(services: Mapping[str, Any], device: Device, free: int) -> list[list[Change]]:
    """For embedded ones that share a rank's GPU: the first GPU without one."""
    sharing = len({engine_of(term.name, services) for term in device.terms}) > 1
    embedded = [name for name, spec in _on(services, device).items() if spec.kind == "rollout" and on_gpu(spec.device)]
    return [[{f"{name}.device": f"cuda:{free}"}] for name in embedded if sharing]


def _on(services: Mapping[str, Any], device: Device) -> dict[str, Any]:
    names = {engine_of(term.name, services) for term in device.terms} - {""}
    return {name: spec for name, spec in services.items() if name in names}


def _slots(name: str, spec: Any, device: Device) -> int:
    """So many that their keys and values fit with all else, at least one."""
    cache = sum(term.bytes for term in device.terms if term.name == f"{name}: keys and values")
    if not cache or device.memory is None:
        return int(spec.slots)
    return max(1, int(spec.slots * (cache + FILL * device.memory - device.needs) / cache))
