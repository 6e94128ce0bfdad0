"""What a topology needs: memory of each kind of device, and what its learner's ranks send, from shapes alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.network.policy import BF16_PARAMETERS
from midflight.services.model.outline import Outline, outline

from .layout import Layout
from .memory import Term, Training, kv_numbers, total, training_terms
from .tracing import LayerBytes, layer_bytes
from .traffic import Flow, flows
from .workload import Workload, layout_of, passes, uses_critic, workload

FILL = 0.9
"""Share of a device's memory that a plan may use: the rest is for the libraries, fragmentation and the plan's error."""
MOMENTS = {"adamw": 2, "lamb": 2, "muon": 2, "sgd": 1, "adamw_8bit": 0}
"""Numbers that an optimizer keeps of each parameter; muon, which keeps one of hidden matrices, at most."""
MOMENT_BYTES = {"adamw_8bit": 2 * (1 + 4 / 256)}
"""Bytes that it keeps of each besides: codes, and scales of blocks."""
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


@dataclass(frozen=True, slots=True)
class Plan:
    """A topology's needs."""

    model: Outline
    layout: Layout
    work: Workload
    tokens: int
    devices: list[Device]
    flows: list[Flow]

    @property
    def fits(self) -> bool:
        """Whether every device does."""
        return all(device.fits for device in self.devices)


class Planner:
    """Plans of one topology's model; what was traced for one plan serves the next."""

    def __init__(self, section: Mapping[str, Any], services: Mapping[str, Any], memory: int | None) -> None:
        """section: the topology's `model`, as a mapping. services: its slots. memory: of a device, in bytes."""
        self.model, self.services, self.memory = outline(section), dict(services), memory
        self.slot = next((name for name, spec in services.items() if isinstance(spec, LearnerConfig)), "")
        if not self.slot:
            raise UserMistake(
                "the topology has no learner; what trains on rows of data alone (sft, dpo, ...) cannot be planned yet"
            )
        self._traced = cache(self._trace)

    @property
    def learner(self) -> LearnerConfig:
        """As the topology has it."""
        found: LearnerConfig = self.services[self.slot]
        return found

    def plan(self, learner: LearnerConfig) -> Plan:
        """With this learner in the topology's place of it. Raises UserMistake when it cannot be arranged so."""
        services = {**self.services, self.slot: learner}
        layout = layout_of(learner)
        work = workload(learner, layout, services)
        cuda = on_gpu(learner.device)
        training = Training(
            tokens=work.tokens(layout),
            bf16=autocasts(learner, self.model, cuda),
            recompute=learner.recompute_every if learner.gradient_checkpointing else 0,
            moments=MOMENTS[learner.optim.name] + bool(learner.optim.lookahead),
            moment_bytes=MOMENT_BYTES.get(learner.optim.name, 0.0),
            reference=learner.kl.type is not None,
            critic=learner.critic.kind if uses_critic(learner) else "",
            entropy=learner.entropy_coef > 0,
            offload=(cuda and learner.optimizer_offload, cuda and learner.activation_offload),
        )
        documents, length = (1, training.tokens) if layout.sequence > 1 else (work.documents, work.length)
        kinds = {0: [False], 1: [True]}.get(training.recompute, [True, False])
        traced = {kind: self._traced(documents, length, training.bf16, kind, cuda, layout.tensor) for kind in kinds}
        terms = training_terms(self.model, layout, traced, training)
        engines = {name: spec for name, spec in services.items() if spec.part == "rollout" and hasattr(spec, "slots")}
        if cuda:
            devices = _gpus(self.model, learner, layout, terms, engines, self.memory)
        else:
            devices = [_host(self.model, layout, terms, engines, self.memory)]
        sent = flows(self.model, layout, training, passes(learner, work))
        return Plan(self.model, layout, work, training.tokens, devices, sent)

    def _trace(self, documents: int, length: int, bf16: bool, recompute: bool, flash: bool, slices: int) -> LayerBytes:
        config, dtype = self.model.config, self.model.dtype
        return layer_bytes(config, dtype, documents, length, bf16=bf16, recompute=recompute, flash=flash, slices=slices)


def on_gpu(device: str) -> bool:
    """What a configured device comes to on this machine; one that names a GPU is planned for without one here."""
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def autocasts(learner: LearnerConfig, model: Outline, cuda: bool) -> bool:
    """As the policy decides it."""
    if learner.bf16 != "auto":
        return learner.bf16 == "on"
    native: bool = torch.cpu._is_avx512_bf16_supported()
    return cuda or (native and model.numel >= BF16_PARAMETERS)


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


def _host(model: Outline, layout: Layout, terms: list[Term], engines: Mapping[str, Any], memory: int | None) -> Device:
    """All processes of the run share the host's memory."""
    ranks = layout.ranks
    held = [Term(term.name, term.bytes * ranks, term.about, term.counted) for term in terms]
    for name, spec in engines.items():
        if not getattr(spec, "urls", []):
            each = engine_terms(model, name, spec)
            held += [Term(term.name, term.bytes * spec.replicas, term.about) for term in each]
    held.append(
        Term("published weights", PUBLISHED * model.numel * model.dtype.itemsize, f"{PUBLISHED} versions in /dev/shm")
    )
    return Device(f"this host, {ranks} rank{'s' if ranks > 1 else ''} and all rollouts", held, memory)


def _gpus(
    model: Outline,
    learner: LearnerConfig,
    layout: Layout,
    terms: list[Term],
    engines: Mapping[str, Any],
    memory: int | None,
) -> list[Device]:
    """The fullest of the ranks' GPUs, and those of rollouts that share none with a rank."""
    first = int(learner.device.partition(":")[2] or 0)
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
        return [Device(f"each of the learner's {layout.ranks} GPUs", terms, memory), *apart]
    return [Device(f"GPU {fullest}, of a learner's rank and rollouts", terms + shared[fullest], memory), *apart]
