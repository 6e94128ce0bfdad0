"""A model sliced over ranks that compute the same micro-batch together (Shoeybi 2019, arXiv:1909.08053).

Hidden states [B, T, H] are the same on all of them, so T need not divide by anything. Attention and MLP take them
whole, compute a rank's share of the heads or of the inner width, and their outputs are added up. Embedding and head are
cut by tokens; a norm is whole on each rank, and so is the score of a classifier. Which projection is which is read off
the plan that transformers keeps with each architecture, `base_model_tp_plan`.

A projection W with an adapter, W x + B A x, is cut as W is: by columns B is cut likewise, and A, narrow, is whole on
each rank and reads the same x; by rows A is cut likewise, its narrow output is added up, and B is whole.
"""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from .slicing import Slicing, columns, distributed, fan_out, of_heads, rows, tokens, whole

COLUMNS, ROWS, OF_HEADS = "colwise", "rowwise", "replicated_with_grad_allreduce"
ADAPTED = re.compile(r"\.(base_layer|lora_[AB])(\.default)?$")
"""What peft puts behind the name of a projection, for its matrices."""
PROJECTIONS: dict[str, dict[str, Slicing]] = {
    COLUMNS: {"": columns, "base_layer": columns, "lora_A": of_heads, "lora_B": columns},
    ROWS: {"": rows, "base_layer": rows, "lora_A": rows, "lora_B": whole},
}
"""By how a projection is cut, and which of its matrices it is."""


def slice_model(lm: Any, mesh: DeviceMesh) -> None:
    """Slice `lm`, the same whole model on every rank of the mesh, in place; all parameters become DTensors over it.

    Raises ValueError, naming the model and the reason, for one that cannot be; it is unchanged then.
    """
    head, embedding = lm.get_output_embeddings(), lm.get_input_embeddings()
    tied = head is not None and head.weight is embedding.weight
    for module, slicing in list(_plan(lm, mesh.size())):
        slicing(module, mesh)
    if tied:
        head.weight = embedding.weight
    elif head is not None:
        head.weight = distributed(head.weight, mesh, Shard(0))


def must_cut(lm: Any, count: int) -> None:
    """Raises ValueError as `slice_model` would; `lm` may be without weights, and is not touched."""
    for _ in _plan(lm, count):
        pass


def whole_on_each(module: nn.Module, mesh: DeviceMesh) -> None:
    """Let every rank hold all of what is not sliced in `module`, and compute it on the same input as the others."""
    for part in module.modules():
        if any(not isinstance(p, DTensor) for p in part.parameters(recurse=False)):
            whole(part, mesh)


def _plan(lm: Any, count: int) -> Iterator[tuple[nn.Module, Slicing]]:
    """Every module of `lm` that has parameters, but the head, and those in which hidden states fan out."""
    no = partial(_refusal, type(lm).__name__, count)
    config, body = lm.config.get_text_config(), lm.base_model
    styles = {_pattern(name): style for name, style in (config.base_model_tp_plan or {}).items()}
    if not styles:
        raise no("transformers has no plan for it")
    heads = config.num_attention_heads
    for what, number in {
        "attention heads": heads,
        "key-value heads": getattr(config, "num_key_value_heads", None) or heads,
        "tokens of the vocabulary": lm.get_input_embeddings().weight.shape[0],
    }.items():
        if number % count:
            raise no(f"its {number} {what} do not divide by that")
    fans: dict[str, nn.Module] = {}
    for name, module in body.named_modules():
        matrix = ADAPTED.search(name)
        projection = name[: matrix.start()] if matrix else name
        style = next((style for pattern, style in styles.items() if pattern.fullmatch(projection)), None)
        own = list(module.parameters(recurse=False))
        flat = all(p.dim() == 1 for p in own)
        if not own and (style is None or matrix or hasattr(module, "base_layer")):
            continue
        if module is lm.get_input_embeddings():
            yield module, tokens
        elif style in PROJECTIONS and isinstance(module, nn.Linear):
            slicing = PROJECTIONS[style][matrix[1] if matrix else ""]
            width = module.out_features if slicing is columns else module.in_features if slicing is rows else 0
            if width % count:
                raise no(f"the width {width} of {name} does not divide by that")
            yield module, slicing
            if style == COLUMNS:
                fans.setdefault(above := projection.rpartition(".")[0], body.get_submodule(above))
        elif style == OF_HEADS and flat:
            yield module, of_heads
        elif style is None and flat and not list(module.children()):
            yield module, whole
        else:
            how = f"cut as {style}" if style else "not in its plan"
            raise no(f"{name} ({type(module).__name__}) is {how}, which is not built here")
    for module in fans.values():
        yield module, fan_out


def _refusal(model: str, count: int, why: str) -> ValueError:
    return ValueError(f"{model} cannot be cut by tp_size {count}: {why}; set another tp_size, or 1")


def _pattern(name: str) -> "re.Pattern[str]":
    """Of transformers: a star is the number of a layer."""
    return re.compile(re.escape(name).replace(r"\*", r"\d+"))
