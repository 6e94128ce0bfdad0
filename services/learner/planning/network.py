"""A network on a device: its weights, and which of them are trained."""

from dataclasses import dataclass

import torch

from midflight.services.learner.group.sharding import SMALL
from midflight.services.learner.network.lora import adapt
from midflight.services.learner.training_config import LoraConfig
from midflight.services.model.outline import Outline, Weight, bare_model
from midflight.services.model.stack import decoder_layers

from .layout import Layout

NARROW, WIDE = 2, 4
"""Bytes of a number in bfloat16 and in float32."""
PREFETCHED = 2
"""Layers gathered at a time: the one at work and the next one."""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """adapters: of each layer, float32; they train in place of the model's own weights, but for those of `outer`."""

    model: Outline
    adapters: tuple[tuple[Weight, ...], ...] = ()
    outer: tuple[Weight, ...] = ()

    @property
    def trained(self) -> tuple[Weight, ...]:
        """What has gradients."""
        return (*self._added, *self.outer) if self.adapters else self.model.weights

    @property
    def size(self) -> int:
        """Bytes of a number that is trained."""
        own = self.model.dtype.itemsize
        return max(WIDE, own) if self.adapters else own

    @property
    def numel(self) -> int:
        """Parameters, adapters included."""
        return self.model.numel + sum(weight.numel for weight in self._added)

    @property
    def small(self) -> bool:
        """Whether FSDP gathers it as one unit."""
        return self.numel <= SMALL

    def held(self, layout: Layout) -> int:
        """Bytes of the weights that rank 0 keeps."""
        return self.model.dtype.itemsize * layout.held(self.model.weights) + self.size * layout.held(self._added)

    def rest(self, layout: Layout) -> int:
        """Bytes of what is not a layer, before it is cut into shards."""
        return self.model.dtype.itemsize * layout.gathered(self.model.rest)

    def layers(self, layout: Layout, bf16: bool) -> list[int]:
        """Bytes of each layer as it is computed with, before it is cut into shards: float32 that trains is gathered in
        bfloat16 under autocast, and what is frozen beside it."""
        size = self.model.dtype.itemsize
        sizes = (NARROW, NARROW) if bf16 and self.size == WIDE else (size, self.size)
        return [
            sizes[0] * layout.gathered(own) + sizes[1] * layout.gathered(more)
            for own, more in zip(self.model.layers, self._adapters, strict=True)
        ]

    def reduced(self, layout: Layout) -> tuple[int, list[int]]:
        """As `rest` and `layers`, of the gradients, which are added up in float32 or wider."""
        size = max(WIDE, self.size)
        rest, layers = (self.outer, self.adapters) if self.adapters else (self.model.rest, self.model.layers)
        return size * layout.gathered(rest), [size * layout.gathered(layer) for layer in layers]

    def at_once(self, rest: int, layers: list[int]) -> int:
        """Bytes gathered at a time, of these."""
        return rest + (sum(layers) if self.small else PREFETCHED * max(layers))

    @property
    def _adapters(self) -> tuple[tuple[Weight, ...], ...]:
        return self.adapters or ((),) * len(self.model.layers)

    @property
    def _added(self) -> tuple[Weight, ...]:
        return tuple(weight for layer in self.adapters for weight in layer)


def adapted(model: Outline, lora: LoraConfig | None) -> Network:
    """The network that trains: with adapters or, without a `lora`, all of it.

    Raises UserMistake as `adapt` does.
    """
    if lora is None:
        return Network(model)
    with torch.device("meta"):
        lm = bare_model(model.config, model.dtype)
        adapt(lm, lora, seed=0)
    layers = [
        tuple(Weight(name, tuple(p.shape)) for name, p in layer.named_parameters() if p.requires_grad)
        for layer in decoder_layers(lm)
    ]
    return Network(model, tuple(layers))


def judging(model: Outline) -> Outline:
    """The same body with one number in place of its output layer: a reward model."""
    score = Weight("score.weight", (1, model.head.shape[1]))
    tied = getattr(model.config, "tie_word_embeddings", False)
    rest = tuple(weight for weight in model.rest if tied or weight != model.head)
    return Outline(model.config, model.layers, (*rest, score), score, model.dtype)
