"""Which terms come together on which device: ranks, rollouts, published weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from midflight.services.learner.training_config import TrainingConfig
from midflight.services.model.outline import Outline

from .layout import Layout
from .memory import ON_HOST, Term, kv_numbers, total

FILL = 0.9
"""Share of a device's memory that a plan may use: the rest is for the libraries, fragmentation and the plan's error."""
PUBLISHED = 2
"""Versions of the weights in the host's shared memory."""


@dataclass(frozen=True, slots=True)
class Device:
    """One that is like all of its kind, or the fullest of them. memory: what it has, in bytes; None: not known.
    judged: whether it is one whose memory was asked for; of others only what they need is told.
    """

    name: str
    terms: list[Term]
    memory: int | None
    judged: bool = True

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


def engine_of(term: str, services: Mapping[str, Any]) -> str:
    """Whose term that is, by its slot; empty when it is not a rollout's."""
    name, colon, _ = term.partition(": ")
    return name if colon and name in services else ""


def _engines(model: Outline, engines: Mapping[str, Any]) -> list[Term]:
    """All their processes together."""
    found: list[Term] = []
    for name, spec in engines.items():
        count = spec.replicas * getattr(spec, "servers", 1) * getattr(spec, "tp_size", 1)
        found += [Term(term.name, term.bytes * count, term.about) for term in engine_terms(model, name, spec)]
    return found


def host(
    model: Outline, layout: Layout, terms: list[Term], engines: Mapping[str, Any], memory: int | None, publishes: bool
) -> list[Device]:
    """All processes of the run share the host's memory, but rollouts on GPUs, which are another device."""
    ranks = layout.ranks
    cards = {name: spec for name, spec in engines.items() if on_gpu(spec.device)}
    held = [Term(term.name, term.bytes * ranks, term.about, term.counted) for term in terms]
    held += _engines(model, {name: spec for name, spec in engines.items() if name not in cards})
    held += _published(model) if publishes else []
    rest = " and all rollouts" if publishes and not cards else ""
    beside = [
        Device(f"a GPU of {name}", _on_card(model, name, spec), None, judged=False) for name, spec in cards.items()
    ]
    return [Device(f"this host, {ranks} rank{'s' if ranks > 1 else ''}{rest}", held, memory), *beside]


def gpus(
    model: Outline,
    trainer: TrainingConfig,
    layout: Layout,
    terms: list[Term],
    engines: Mapping[str, Any],
    memory: int | None,
    publishes: bool,
) -> list[Device]:
    """The fullest of the ranks' GPUs, those of rollouts that share none with a rank, and what is left to the host."""
    ours = cards_of(trainer)
    shared: dict[int, list[Term]] = {}
    apart: list[Device] = []
    cards = {name: spec for name, spec in engines.items() if on_gpu(spec.device)}
    for name, spec in cards.items():
        number, held = int(spec.device.partition(":")[2] or 0), _on_card(model, name, spec)
        if spec.kind == "sglang" or number not in ours or "CUDA_VISIBLE_DEVICES" in spec.env:
            apart.append(Device(f"a GPU of {name}", held, memory))
        else:
            shared.setdefault(number, []).extend(held)
    left = [
        Term(f"{term.name} of {len(ours)} ranks", term.bytes * len(ours), "left by the GPUs")
        for term in terms
        if term.about == ON_HOST
    ]
    left += _engines(model, {name: spec for name, spec in engines.items() if name not in cards})
    left += _published(model) if publishes else []
    beside = [Device("the host, beside its GPUs", left, None, judged=False)] if left else []
    fullest = max(shared, key=lambda number: total(shared[number]), default=None)
    if fullest is None:
        each_of = "the learner's" if trainer.kind == "learner" else f"{trainer.kind}'s"
        return [Device(f"each of {each_of} {layout.ranks} GPUs", terms, memory), *apart, *beside]
    together = terms + shared[fullest]
    return [Device(f"GPU {fullest}, of a learner's rank and rollouts", together, memory), *apart, *beside]


def cards_of(trainer: TrainingConfig) -> range:
    """Numbers of the GPUs that ranks take on the host of the run."""
    first = int(trainer.device.partition(":")[2] or 0)
    return range(trainer.ranks // trainer.hosts) if trainer.ranks > 1 else range(first, first + 1)


def _on_card(model: Outline, name: str, spec: Any) -> list[Term]:
    """Servers have GPUs of their own; embedded replicas all take the same one."""
    return engine_terms(model, name, spec) if spec.kind == "sglang" else _engines(model, {name: spec})


def _published(model: Outline) -> list[Term]:
    size = PUBLISHED * model.numel * model.dtype.itemsize
    return [Term("published weights", size, f"{PUBLISHED} versions in /dev/shm")]
