"""What a topology needs: memory of each kind of device, and what its trainer's ranks send, from shapes alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.network.policy import BF16_PARAMETERS
from midflight.services.learner.offline.config import OfflineConfig
from midflight.services.learner.training_config import TrainingConfig
from midflight.services.model.outline import outline

from .besides import compared, critic_of, head_of, teacher_of, trained
from .devices import FILL, Device, gpus, host, on_gpu
from .layout import Layout
from .memory import Frozen, Training, training_terms
from .network import Network
from .tracing import LayerBytes, forward_bytes, layer_bytes, mean, most
from .traffic import Flow, Passes, flows, joined
from .workload import Texts, Workload, layout_of, of_rows, passes, workload

__all__ = ["FILL", "Plan", "Planner", "on_gpu"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A topology's needs."""

    network: Network
    layout: Layout
    work: Workload
    tokens: int
    devices: list[Device]
    flows: list[Flow]

    @property
    def fits(self) -> bool:
        """Whether every device does."""
        return all(device.fits for device in self.devices)

    @property
    def needs(self) -> int:
        """Bytes of the fullest device, of those that are judged."""
        return max(device.needs for device in self.devices if device.judged)


class Planner:
    """Plans of one topology's model; what was traced for one plan serves the next.

    section: the topology's `model`, as a mapping. services: its slots. memory: of a device, in bytes. row: tokens of
    the longest row of data, for trainers on rows; without it a row may fill a micro-batch.
    """

    def __init__(
        self, section: Mapping[str, Any], services: Mapping[str, Any], memory: int | None, row: int | None = None
    ) -> None:
        self.services, self.memory, self.row = dict(services), memory, row
        self.slot = next((name for name, spec in services.items() if isinstance(spec, TrainingConfig)), "")
        if not self.slot:
            raise UserMistake("the topology has no learner and no other trainer: there is nothing to plan")
        if row is not None and not isinstance(self.trainer, OfflineConfig):
            raise UserMistake(f"{self.slot} trains on what the rollouts make, as long as their max_length: no row is")
        self.model = outline(section)
        self.network, self.teacher = trained(self.trainer, self.model), teacher_of(self.trainer, section)
        self._layers, self._forward = cache(self._trace_layers), cache(self._trace_forward)

    @property
    def trainer(self) -> TrainingConfig:
        """As the topology has it."""
        found: TrainingConfig = self.services[self.slot]
        return found

    def plan(
        self, trainer: TrainingConfig, longest: int | None = None, services: Mapping[str, Any] | None = None
    ) -> Plan:
        """With this trainer in the topology's place of it, and other slots for the topology's if they are given.
        longest: tokens of a sample, in place of `row` and of the rollouts' `max_length`.

        Raises UserMistake when it cannot be arranged so.
        """
        services = {name: _as_long(spec, longest) for name, spec in (services or self.services).items()}
        layout = layout_of(trainer)
        work = self._work(trainer, layout, services, longest or self.row)
        cuda, tokens = on_gpu(trainer.device), work.tokens(layout)
        texts = work.texts(
            layout, guessed=isinstance(trainer, OfflineConfig) and not cuda and not (longest or self.row)
        )
        training = Training(
            network=self.network,
            tokens=tokens,
            bf16=autocasts(trainer, self.network, cuda),
            recompute=trainer.recompute_every if trainer.gradient_checkpointing else 0,
            head=head_of(trainer, self.network, layout, tokens, self.teacher),
            optim=trainer.optim,
            frozen=self._frozen(trainer, texts, cuda),
            critic=critic_of(trainer),
            offload=(cuda and trainer.optimizer_offload, cuda and trainer.activation_offload),
        )
        kinds = {0: [False], 1: [True]}.get(training.recompute, [True, False])
        traced = {kind: self._layers(texts, training.bf16, kind, cuda, layout.tensor) for kind in kinds}
        terms = training_terms(layout, traced, training)
        devices = self._devices(trainer, layout, terms, services, cuda)
        return Plan(self.network, layout, work, tokens, devices, self._flows(trainer, layout, training, work))

    def _work(self, trainer: TrainingConfig, layout: Layout, services: Mapping[str, Any], row: int | None) -> Workload:
        if isinstance(trainer, LearnerConfig):
            return workload(trainer, layout, services)
        assert isinstance(trainer, OfflineConfig)
        return of_rows(trainer, layout, row)

    def _frozen(self, trainer: TrainingConfig, texts: Texts, cuda: bool) -> Frozen | None:
        network = self.teacher or (self.network if compared(trainer) else None)
        if network is None:
            return None
        bf16 = autocasts(trainer, network, cuda)
        name = "teacher" if self.teacher else "reference model"
        try:
            work = self._forward(network, texts, bf16, cuda, trainer.tp_size)
        except UserMistake as mistake:
            raise UserMistake(f"the {name}: {mistake}") from mistake
        return Frozen(name, network, bf16, work, stays=not isinstance(trainer, LearnerConfig))

    def _devices(
        self, trainer: TrainingConfig, layout: Layout, terms: list[Any], services: Mapping[str, Any], cuda: bool
    ) -> list[Device]:
        engines = {
            name: spec
            for name, spec in services.items()
            if spec.part == "rollout" and hasattr(spec, "slots") and not getattr(spec, "urls", [])
        }
        publishes = isinstance(trainer, LearnerConfig)
        if cuda:
            return gpus(self.model, trainer, layout, terms, engines, self.memory, publishes)
        return host(self.model, layout, terms, engines, self.memory, publishes)

    def _flows(self, trainer: TrainingConfig, layout: Layout, training: Training, work: Workload) -> list[Flow]:
        own = flows(layout, training, passes(trainer, work))
        if not self.teacher or not training.frozen:
            return own
        teaching = Training(network=self.teacher, tokens=training.tokens, bf16=training.frozen.bf16, recompute=0)
        return joined([*own, *flows(layout, teaching, Passes(0, work.rounds * work.updates))])

    def _trace_layers(self, texts: Texts, bf16: bool, recompute: bool, flash: bool, slices: int) -> LayerBytes:
        model, lora = self.model, self.trainer.lora
        run = partial(layer_bytes, model.config, model.dtype, bf16=bf16, recompute=recompute, flash=flash)
        return most(
            mean((count, run(*text, slices=slices, lora=lora, pair=pair)) for count, pair in model.kinds)
            for text in texts
        )

    def _trace_forward(self, network: Network, texts: Texts, bf16: bool, flash: bool, slices: int) -> int:
        model = network.model
        run = partial(forward_bytes, model.config, model.dtype, bf16=bf16, flash=flash, slices=slices)
        return max(run(*text, pair=pair) for _, pair in model.kinds for text in texts)


def autocasts(trainer: TrainingConfig, network: Network, cuda: bool) -> bool:
    """As the policy decides it."""
    if trainer.bf16 != "auto":
        return trainer.bf16 == "on"
    native: bool = torch.cpu._is_avx512_bf16_supported()
    return cuda or (native and network.numel >= BF16_PARAMETERS)


def _as_long(spec: Any, longest: int | None) -> Any:
    if longest is None or spec.part != "rollout" or not hasattr(spec, "max_length"):
        return spec
    return spec.model_copy(update={"max_length": longest})
