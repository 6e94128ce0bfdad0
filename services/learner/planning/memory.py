"""How many bytes a training step needs on a trainer's device, term by term. Plain sums; `tracing` sees what they lack.

The sum is the peak of a step that is not the first: gradients are there from an earlier micro-batch, an optimizer's
states from an earlier step, and the last layer's forward pass has just ended. At that moment either the output layer or
a decoder layer is at work, so that the larger of these two terms counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain

import torch

from midflight.services.learner.training_config import OptimConfig
from midflight.services.model.outline import Outline

from .layout import Layout
from .network import NARROW, PREFETCHED, WIDE, Network
from .states import optimizer_states
from .tracing import LayerBytes

ON_HOST = "in host memory"
"""What a term is about that a GPU leaves to the host."""
ADAMW = OptimConfig()
"""A critic's optimizer always is."""


@dataclass(frozen=True, slots=True)
class Term:
    """Part of a device's memory in bytes; one that is not counted is needed when another, larger one is not."""

    name: str
    bytes: int
    about: str = ""
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Frozen:
    """A network beside the one that trains, which is through with a micro-batch before that begins. bf16: autocast.
    work: bytes of its forward pass. stays: its weights are not cut again before the other's turn.
    """

    name: str
    network: Network
    bf16: bool
    work: int = 0
    stays: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What decides about a step's memory.

    tokens: positions of a micro-batch on this device. bf16: autocast. recompute: of how many layers one is recomputed,
    0 for none. head: bytes of the output layer and the loss at their backward pass. critic: "head" or "model".
    offload: what a GPU leaves to the host, optimizer and activations; never a frozen network.
    """

    network: Network
    tokens: int
    bf16: bool
    recompute: int
    head: int = 0
    optim: OptimConfig = ADAMW
    frozen: Frozen | None = None
    critic: str = ""
    offload: tuple[bool, bool] = (False, False)

    @property
    def bodies(self) -> int:
        """Networks of this shape that train at a time."""
        return 1 + (self.critic == "model")


def training_terms(layout: Layout, traced: Mapping[bool, LayerBytes], training: Training) -> list[Term]:
    """All terms of a device. traced: a layer that is recomputed, or is not, on `training.tokens` positions."""
    network = training.network
    held, trained = network.held(layout), network.size * layout.held(network.trained)
    states, about = optimizer_states(training.optim, network, layout)
    numbers = "bfloat16" if network.model.dtype == torch.bfloat16 else "float32, the masters"
    numbers, of = (f"{numbers}, adapters with them", "of the adapters") if network.adapters else (numbers, "")
    terms = [
        *_away([Term("weights", held, numbers), Term("gradients", trained, of)], _shards_on_host(layout, training)),
        *_away([Term("optimizer states", states, about)], training.offload[0]),
        *_critic(layout, training, held + trained),
        *_frozen(layout, training.frozen),
        *_gathered(layout, training),
        *_work(layout, traced, training),
    ]
    return [term for term in terms if term.bytes]


def total(terms: list[Term]) -> int:
    """The peak in bytes."""
    return sum(term.bytes for term in terms if term.counted)


def _away(terms: list[Term], on_host: bool) -> list[Term]:
    return [replace(term, about=ON_HOST, counted=False) for term in terms] if on_host else terms


def _shards_on_host(layout: Layout, training: Training) -> bool:
    return training.offload[0] and layout.ranks > 1


def _critic(layout: Layout, training: Training, held: int) -> list[Term]:
    if training.critic == "model":
        states, _ = optimizer_states(ADAMW, training.network, layout)
        body = [Term("critic model", held, "weights, gradients")]
        rule = [Term("critic's optimizer states", states)]
        return [*_away(body, _shards_on_host(layout, training)), *_away(rule, training.offload[0])]
    numbers = training.network.model.head.shape[1] + 1
    return [Term("critic head", 4 * WIDE * numbers)] if training.critic else []


def _frozen(layout: Layout, frozen: Frozen | None) -> list[Term]:
    """What its root has gathered stays so: FSDP lets only layers go behind a forward pass."""
    if frozen is None:
        return []
    network, terms = frozen.network, [Term(frozen.name, frozen.network.held(layout))]
    if frozen.stays and _cut(layout):
        stays = network.rest(layout) + (sum(network.layers(layout, frozen.bf16)) if network.small else 0)
        terms.append(Term(f"{frozen.name}, gathered", stays, "all" if network.small else "what is not a layer"))
    return terms


def _cut(layout: Layout) -> bool:
    """Whether parameters are made whole for use."""
    return layout.ranks > 1 and not layout.shards == 1 == layout.copies


def _gathered(layout: Layout, training: Training) -> list[Term]:
    """Parameters made whole for use, those of layers as they are computed with, and gradients before they are
    reduced."""
    if not _cut(layout):
        return []
    network, bodies = training.network, training.bodies
    whole = "all, from the forward to the backward pass" if network.small else f"{PREFETCHED} layers and the rest"
    about = f"{whole}, of policy and critic" if bodies > 1 else whole
    weights = network.at_once(network.rest(layout), network.layers(layout, training.bf16))
    return [
        Term("gathered weights", bodies * weights, about),
        Term("their gradients", bodies * network.at_once(*network.reduced(layout))),
    ]


def _work(layout: Layout, traced: Mapping[bool, LayerBytes], training: Training) -> list[Term]:
    """What is kept from the forward to the backward pass, and what may be at work then, or before."""
    layer = Term("a layer at work", max(one.work for one in traced.values()), "its backward pass")
    head = Term("logits of a chunk", training.head, "and the output layer's gradient")
    ring = Term("keys and values on their way", _ring(training, layout), "ring attention")
    kept, frozen = _away(_kept(layout, traced, training), training.offload[1]), training.frozen
    own = [*kept, *largest_of([layer], [head]), ring]
    return largest_of(own, [Term(f"{frozen.name} at work", frozen.work, "its forward pass")] if frozen else [])


def largest_of(*alternatives: list[Term]) -> list[Term]:
    """All terms; those of the largest alternative count, if they did."""
    most = max(alternatives, key=total)
    return list(chain(*([t if one is most else replace(t, counted=False) for t in one] for one in alternatives)))


def _kept(layout: Layout, traced: Mapping[bool, LayerBytes], training: Training) -> list[Term]:
    network, bodies = training.network, training.bodies
    count = len(network.model.layers)
    again = -(-count // training.recompute) if training.recompute else 0
    own = chain(*network.model.layers, *network.adapters)
    matrices = layout.gathered(weight for weight in own if len(weight.shape) == 2)  # stacks of experts are not cast
    cast = training.bf16 and network.model.dtype == torch.float32
    copies = NARROW * matrices * (count - again) // count if cast else 0
    kept = (again and traced[True].kept * again) + (count - again and traced[False].kept * (count - again))
    rest = max(one.rest for one in traced.values())
    about = f"{training.tokens:,} tokens, {count} layers" + (f", {again} of them recomputed" if again else "")
    about += ", and the critic's" if bodies > 1 else ""
    return [
        Term("activations", bodies * (kept - copies + rest), about),
        Term("bfloat16 copies of weights", 0 if _cut(layout) else bodies * copies, "autocast"),
    ]


def _ring(training: Training, layout: Layout) -> int:
    """Keys and values here and coming, and their gradients."""
    if layout.sequence == 1:
        return 0
    model = training.network.model
    return 4 * training.tokens * kv_numbers(model) // layout.tensor * narrow(training)


def narrow(training: Training) -> int:
    """Bytes of a number in what layers compute."""
    return NARROW if training.bf16 else training.network.model.dtype.itemsize


def kv_numbers(model: Outline) -> int:
    """Numbers of keys and values of a token in one layer; of DeepSeek's, whose sizes differ, as they are computed."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys, values = getattr(config, "qk_head_dim", None) or size, getattr(config, "v_head_dim", None) or size
    return int(heads) * (int(keys) + int(values))
