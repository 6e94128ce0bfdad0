"""Which terms come together on which device: ranks, rollouts, published weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from midflight.services.learner.training_config import TrainingConfig
from midflight.services.model.outline import Outline

from .layout import Layout
from .memory import Term, kv_numbers, total

FILL = 0.9
"""Share of a device's memory that a plan may use: the rest is for the libraries, fragmentation and the plan's error."""
PUBLISHED = 2
"""Versions of the weights in the host's shared memory."""


@dataclass(frozen=True, slots=True)
class Device:
    """One that is like all of its kind, or the fullest of them. memory: what it has, in bytes; None: not known."""

    name: str
    terms: list[Term]
    memory: int | None

    @property
    def needs(self) -> int:
        """Bytes at the peak."""
        return total(self.terms)

    @property
    def fits(self) -> bool:
        """Whether that is within FILL of what it has, as far as is known."""
        return self.memory is None or self.needs <= FILL * self.memory

    @property
    def largest(self) -> Term:
        """The term that weighs most."""
        return max((term for term in self.terms if term.counted), key=lambda term: term.bytes)


def on_gpu(device: str) -> bool:
    """What a configured device comes to on this machine; one that names a GPU is planned for without one here."""
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def engine_terms(model: Outline, name: str, spec: Any) -> list[Term]:
    """A rollout's process: weights of its own, those it keeps for `policy_delay`, keys and values of every slot."""
    size, cut = model.dtype.itemsize, getattr(spec, "tp_size", 1)
    versions = 1 + getattr(spec, "policy_delay", 0)
    places = spec.slots * spec.max_length
    keys = places * kv_numbers(model) * len(model.layers) * size // cut
    weights = Term(
        f"{name}: weights", versions * model.numel * size // cut, f"{versions} versions" if versions > 1 else ""
    )
    return [weights, Term(f"{name}: keys and values", keys, f"{spec.slots:,} x {spec.max_length:,} tokens")]


def host(
    model: Outline, layout: Layout, terms: list[Term], engines: Mapping[str, Any], memory: int | None, publishes: bool
) -> Device:
    """All processes of the run share the host's memory."""
    ranks = layout.ranks
    held = [Term(term.name, term.bytes * ranks, term.about, term.counted) for term in terms]
    for name, spec in engines.items():
        if not getattr(spec, "urls", []):
            each = engine_terms(model, name, spec)
            held += [Term(term.name, term.bytes * spec.replicas, term.about) for term in each]
    if publishes:
        size = PUBLISHED * model.numel * model.dtype.itemsize
        held.append(Term("published weights", size, f"{PUBLISHED} versions in /dev/shm"))
    rest = " and all rollouts" if publishes else ""
    return Device(f"this host, {ranks} rank{'s' if ranks > 1 else ''}{rest}", held, memory)


def gpus(
    model: Outline,
    trainer: TrainingConfig,
    layout: Layout,
    terms: list[Term],
    engines: Mapping[str, Any],
    memory: int | None,
) -> list[Device]:
    """The fullest of the ranks' GPUs, and those of rollouts that share none with a rank."""
    first = int(trainer.device.partition(":")[2] or 0)
    ours = range(layout.ranks) if layout.ranks > 1 else range(first, first + 1)
    shared: dict[int, list[Term]] = {}
    apart: list[Device] = []
    for name, spec in engines.items():
        if getattr(spec, "urls", []) or not on_gpu(spec.device):
            continue
        each = engine_terms(model, name, spec)
        number = int(spec.device.partition(":")[2] or 0)
        if spec.kind == "sglang" or number not in ours or "CUDA_VISIBLE_DEVICES" in spec.env:
            apart.append(Device(f"a GPU of {name}", each, memory))
        else:
            together = [Term(term.name, term.bytes * spec.replicas, term.about) for term in each]
            shared.setdefault(number, []).extend(together)
    fullest = max(shared, key=lambda number: total(shared[number]), default=None)
    if fullest is None:
        each_of = "the learner's" if trainer.kind == "learner" else f"{trainer.kind}'s"
        return [Device(f"each of {each_of} {layout.ranks} GPUs", terms, memory), *apart]
    return [Device(f"GPU {fullest}, of a learner's rank and rollouts", terms + shared[fullest], memory), *apart]
