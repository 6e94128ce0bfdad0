"""What a learner checkpoint contains: weights, optimizer, random states, and the caller's extra."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from . import rng
from .checkpoint import Manifest, UnusableCheckpoint, save, verify
from .critic import CriticTraining
from .durable import Chunk
from .optim import PolicyOptimizer
from .sharding import cut_like, wholes
from .tensorfile import tensor_chunks

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
CRITIC, CRITIC_OPTIMIZER = "critic.safetensors", "critic-optimizer.safetensors"
REMEDY = "set `model` and the learner's critic, optim and lora back to what the run began with, or start a new run"


def model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, tied ones once under their first name, and persistent buffers; not copied."""
    tensors: dict[str, Tensor] = dict(module.named_parameters())
    persistent = module.state_dict(keep_vars=True)
    return tensors | {name: b for name, b in module.named_buffers() if name in persistent}


def save_learner(
    root: Path,
    step: int,
    module: nn.Module,
    optimizer: PolicyOptimizer,
    extra: Mapping[str, Any],
    keep: int = 2,
    critic: CriticTraining | None = None,
) -> Manifest:
    """Checkpoint everything that the next step depends on; see `checkpoint.save` for errors and durability.

    In a group one rank does this, while the others take part by `join`.
    """
    state = {"optimizer": optimizer.values(), "rng": rng.capture()}
    files: dict[str, Iterable[Chunk]] = {
        MODEL: tensor_chunks(wholes(model_tensors(module))),
        OPTIMIZER: tensor_chunks(wholes(optimizer.tensors())),
    }
    if critic:
        state["critic"] = critic.optimizer.values()
        files[CRITIC] = tensor_chunks(wholes(model_tensors(critic.module)))
        files[CRITIC_OPTIMIZER] = tensor_chunks(wholes(critic.optimizer.tensors()))
    files[STATE] = [json.dumps(state, allow_nan=False).encode()]
    return save(root, step, files, extra, keep)


def join(module: nn.Module, optimizer: PolicyOptimizer, critic: CriticTraining | None = None) -> None:
    """Give this rank's shards to the one that saves, in its order."""
    sources = [model_tensors(module), optimizer.tensors()]
    if critic:
        sources += [model_tensors(critic.module), critic.optimizer.tensors()]
    for tensors in sources:
        wholes(tensors, keep=False)


def load_learner(
    path: Path, module: nn.Module, optimizer: PolicyOptimizer, critic: CriticTraining | None = None
) -> Manifest:
    """Verify `path` and put its whole content back in place; training goes on bit for bit on a CPU.

    Raises CheckpointError when it does not verify or belongs to another model; nothing is changed then.
    """
    manifest = verify(path)
    stored = _stored(path / MODEL, module)
    state = json.loads((path / STATE).read_bytes())
    if critic and CRITIC not in manifest.files:
        raise UnusableCheckpoint(f"{path}: written without a critic; {REMEDY}")
    valued = _stored(path / CRITIC, critic.module) if critic else {}
    try:
        optimizer.load(load_file(path / OPTIMIZER), state["optimizer"])
        if critic:
            critic.optimizer.load(load_file(path / CRITIC_OPTIMIZER), state["critic"])
    except (ValueError, KeyError) as error:
        raise UnusableCheckpoint(f"{path}: {error}; {REMEDY}") from error
    put(stored, module)
    if critic:
        put(valued, critic.module)
    rng.restore(state["rng"])
    return manifest


def load_model_tensors(path: Path, module: nn.Module) -> None:
    """Verify `path` and put only its model in place; raises CheckpointError as `load_learner` does."""
    verify(path)
    put(_stored(path / MODEL, module), module)


def model_of(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The model in a checkpoint, a whole tensor at a time, by the names of `model_tensors`. Verify `path` first."""
    with safe_open(path / MODEL, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            yield name, file.get_tensor(name)


def _stored(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """A file of tensors, if it has exactly those of `module`."""
    current, stored = model_tensors(module), load_file(path)
    if {k: v.shape for k, v in current.items()} != {k: v.shape for k, v in stored.items()}:
        differing = sorted(set(current) ^ set(stored)) or ["shapes"]
        raise UnusableCheckpoint(f"{path}: written by another model, differs in {differing[:3]}; {REMEDY}")
    return stored


@torch.no_grad()
def put(stored: Mapping[str, Tensor], module: nn.Module) -> None:
    """Copy whole tensors into a module's, by name, cut as these are."""
    for name, tensor in model_tensors(module).items():
        tensor.copy_(cut_like(stored[name], tensor))
