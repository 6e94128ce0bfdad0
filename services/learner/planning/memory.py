"""How many bytes a training step needs on a learner's device, term by term. Plain sums; `tracing` sees what they lack.

The sum is the peak of a step that is not the first: gradients are there from an earlier micro-batch, Adam's moments
from an earlier step, and the last layer's forward pass has just ended. At that moment either the output layer or a
decoder layer is at work, so that the larger of these two terms counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from midflight.services.learner.group.sharding import SMALL
from midflight.services.learner.network.head import CHUNK_ELEMENTS
from midflight.services.model.outline import Outline

from .layout import Layout
from .tracing import LayerBytes

NARROW, WIDE = 2, 4
"""Bytes of a number in bfloat16 and in float32."""
CHUNKS, CHUNKS_ENTROPY = 3, 6
"""Buffers as large as a chunk of logits that the head's backward pass holds, without and with a gradient of entropy."""
PREFETCHED = 2
"""Layers gathered at a time: the one at work and the next one."""


@dataclass(frozen=True, slots=True)
class Term:
    """Part of a device's memory in bytes; one that is not counted is needed when another, larger one is not."""

    name: str
    bytes: int
    about: str = ""
    counted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What else decides about a step's memory.

    tokens: positions of a micro-batch on this device. bf16: autocast. recompute: of how many layers one is recomputed,
    0 for none. moments: numbers that the optimizer keeps of each parameter; moment_bytes: bytes besides.
    offload: what a GPU leaves to the host, optimizer and activations.
    """

    tokens: int
    bf16: bool
    recompute: int
    moments: int = 2
    moment_bytes: float = 0.0
    reference: bool = False
    critic: str = ""
    entropy: bool = False
    offload: tuple[bool, bool] = (False, False)


def training_terms(model: Outline, layout: Layout, traced: Mapping[bool, LayerBytes], training: Training) -> list[Term]:
    """All terms of a device. traced: a layer that is recomputed, or is not, on `training.tokens` positions."""
    size = model.dtype.itemsize
    held = size * layout.held(model.weights)
    numbers = "bfloat16" if model.dtype == torch.bfloat16 else "float32, the masters"
    adam = training.moments * held + int(training.moment_bytes * held / size) + WIDE * len(model.weights)
    of_each = f"{training.moments} numbers" if training.moments else f"{training.moment_bytes:.2f} bytes"
    states = Term("optimizer states", adam, f"{of_each} of each parameter")
    terms = [
        *_kept([Term("weights", held, numbers), Term("gradients", held)], _shards_on_host(layout, training)),
        *_kept([states], training.offload[0]),
        *_others(model, layout, training, held, adam),
        *_gathered(model, layout, training),
        *_activations(model, layout, traced, training),
    ]
    return [term for term in terms if term.bytes]


def total(terms: list[Term]) -> int:
    """The peak in bytes."""
    return sum(term.bytes for term in terms if term.counted)


def _kept(terms: list[Term], on_host: bool) -> list[Term]:
    return [replace(term, about="in host memory", counted=False) for term in terms] if on_host else terms


def _shards_on_host(layout: Layout, training: Training) -> bool:
    return training.offload[0] and layout.ranks > 1


def _others(model: Outline, layout: Layout, training: Training, held: int, adam: int) -> list[Term]:
    terms = [Term("reference model", held)] if training.reference else []
    if training.critic == "model":
        terms += _kept([Term("critic model", 2 * held, "weights, gradients")], _shards_on_host(layout, training))
        terms += _kept([Term("critic's optimizer states", adam)], training.offload[0])
    elif training.critic:
        terms.append(Term("critic head", 4 * WIDE * (model.head.shape[1] + 1)))
    return terms


def _gathers(layout: Layout) -> bool:
    return layout.ranks > 1 and not layout.shards == 1 == layout.copies


def _gathered(model: Outline, layout: Layout, training: Training) -> list[Term]:
    """Parameters made whole for use, those of layers as they are computed with, and gradients before they are reduced,
    which is in float32."""
    if not _gathers(layout):
        return []
    rest = layout.gathered(model.rest)
    if model.numel <= SMALL:
        layers, about = sum(map(layout.gathered, model.layers)), "all, from the forward to the backward pass"
    else:
        layers, about = PREFETCHED * max(map(layout.gathered, model.layers)), f"{PREFETCHED} layers and the rest"
    return [
        Term("gathered weights", rest * model.dtype.itemsize + layers * narrow(model, training), about),
        Term("their gradients", (rest + layers) * max(WIDE, model.dtype.itemsize)),
    ]


def _activations(model: Outline, layout: Layout, traced: Mapping[bool, LayerBytes], training: Training) -> list[Term]:
    """What is kept from the forward to the backward pass, and the two things that may be at work then."""
    count = len(model.layers)
    again = -(-count // training.recompute) if training.recompute else 0
    matrices = layout.gathered(weight for weight in model.layers[0] if len(weight.shape) > 1)
    cast = training.bf16 and model.dtype == torch.float32
    copies = NARROW * matrices * (count - again) if cast else 0
    kept = (again and traced[True].kept * again) + (count - again and traced[False].kept * (count - again))
    rest = max(one.rest for one in traced.values())
    work = max(one.work for one in traced.values())
    head = _head(model, layout, training)
    about = f"{training.tokens:,} tokens, {count} layers" + (f", {again} of them recomputed" if again else "")
    on_host = training.offload[1]
    return [
        *_kept([Term("activations", kept - copies + rest, about)], on_host),
        *_kept([Term("bfloat16 copies of weights", 0 if _gathers(layout) else copies, "autocast")], on_host),
        Term("a layer at work", work, "its backward pass", counted=work >= head),
        Term("logits of a chunk", head, "and the output layer's gradient", counted=head > work),
        Term("keys and values on their way", _ring(model, layout, training), "ring attention"),
    ]


def _head(model: Outline, layout: Layout, training: Training) -> int:
    """The backward pass of `head.chunked_logprob`, every position scored."""
    rows, width = layout.within(model.head)
    chunk = min(training.tokens, max(1, CHUNK_ELEMENTS // rows)) * rows * WIDE
    table = rows * width * WIDE * (2 if model.dtype == torch.bfloat16 else 1)
    hidden = 2 * training.tokens * width * model.dtype.itemsize
    return (CHUNKS_ENTROPY if training.entropy else CHUNKS) * chunk + table + hidden


def _ring(model: Outline, layout: Layout, training: Training) -> int:
    """Keys and values here and coming, and their gradients."""
    if layout.sequence == 1:
        return 0
    return 4 * training.tokens * kv_numbers(model) // layout.tensor * narrow(model, training)


def narrow(model: Outline, training: Training) -> int:
    """Bytes of a number in what layers compute."""
    return NARROW if training.bf16 else model.dtype.itemsize


def kv_numbers(model: Outline) -> int:
    """Numbers of keys and values of a token in one layer."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(heads) * int(size)
