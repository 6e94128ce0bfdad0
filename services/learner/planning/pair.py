"""Two layers of a configuration's model, alike, on tensors without memory: they stand for all of their kind."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.group.tensor_parallel import must_cut
from midflight.services.learner.network.lora import adapt
from midflight.services.learner.network.policy import must_train
from midflight.services.learner.training_config import LoraConfig
from midflight.services.model.outline import Pair, bare_model
from midflight.services.model.shape import reason
from midflight.services.model.stack import layer_list


def two_layers(config: Any, dtype: torch.dtype, pair: Pair, slices: int = 1, lora: LoraConfig | None = None) -> Any:
    """Its layers of these numbers, with embedding and head, on the meta device; a number may be there twice.

    slices: ranks over which tensor parallelism cuts a layer; it is one of them that is had. lora: adapters, which train
    in place of the rest. Raises UserMistake, naming the model and the reason, for one that the learner would not train,
    or not cut so.
    """
    with torch.device("meta"):
        lm = _cut_out(bare_model(config, dtype, max(pair) + 1), pair)
        try:
            must_train(lm)
            if slices > 1:
                must_cut(lm, slices)
        except ValueError as error:
            raise UserMistake(f"model: {error}") from error
        if slices > 1:
            lm = _cut_out(bare_model(sliced(config, slices), dtype, max(pair) + 1), pair)
        if lora:
            adapt(lm, lora, seed=0)
    return lm.eval()  # as weights are loaded: without dropout


def _cut_out(lm: Any, pair: Pair) -> Any:
    stack, config = layer_list(lm), lm.config
    first, second = (stack[at] for at in pair)
    del stack[:]
    if second is first:
        second = copy.deepcopy(first, {id(config): config})  # which names its attention, and stays the model's
    stack.extend([first, second])
    types = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(pair)
    if types and "layer_types" in vars(config):  # Mamba's are computed
        config.layer_types = [types[at] for at in pair]
    return lm


def without_memory(lm: Any) -> Any:
    """The same on the CPU, in the fake mode that is on. It must have been made outside of it: models make constants by
    `torch.tensor`, which fake tensors do not bear on the meta device."""
    made: dict[Tensor, Tensor] = {}
    for module in lm.modules():
        for kept in (module._parameters, module._buffers):
            for name, tensor in kept.items():
                if tensor is not None:
                    kept[name] = made.setdefault(tensor, _here(tensor))
    return lm


def _here(tensor: Tensor) -> Tensor:
    """Another one of that shape on the CPU."""
    made = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


@contextmanager
def fakes(lm: Any) -> Iterator[None]:
    """Fake tensors, to run that model on. Raises UserMistake, naming it, for what it or PyTorch raises meanwhile."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it writes a traceback of its own
    try:
        with FakeTensorMode():
            yield
    except Exception as error:  # whatever an architecture's own code raises where sizes do not go together
        raise UserMistake(
            f"model: {type(lm).__name__} does not compute as its config.json is: {reason(error)}"
        ) from error
    finally:
        log.setLevel(level)


def sliced(config: Any, slices: int) -> Any:
    """The configuration of what a rank computes: its share of the heads and of the inner width, all of the rest; of a
    model that `must_cut` finds nothing wrong with."""
    heads = config.num_attention_heads
    pairs = getattr(config, "num_key_value_heads", None) or heads
    config = copy.deepcopy(config)
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    config.num_attention_heads, config.num_key_value_heads = heads // slices, pairs // slices
    config.intermediate_size //= slices
    return config
