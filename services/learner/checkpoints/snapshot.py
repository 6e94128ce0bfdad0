"""What a learner checkpoint contains: weights, optimizer, random states, and the caller's extra.

Each rank gives the parts it holds and nobody else writes, so nothing is gathered; a load reads what this rank needs, by
whatever number of ranks it was written, however they were arranged.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from midflight.services.learner.group.sharding import cut_like
from midflight.services.learner.network.critic import CriticTraining
from midflight.services.learner.optimizers.host import on_host, settled
from midflight.services.learner.optimizers.optim import PolicyOptimizer

from . import rng
from .checkpoint import CheckpointError, Manifest, UnusableCheckpoint, verify
from .saving import Files, Share
from .slices import Slice, like, local, writes
from .stored import Shapes, Stored, file_name
from .tensorfile import tensor_chunks

MODEL, OPTIMIZER, STATE = "model", "optimizer", "state.json"
CRITIC, CRITIC_OPTIMIZER = "critic", "critic-optimizer"
REMEDY = "set `model` and the learner's critic, optim and lora back to what the run began with, or start a new run"


def model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, tied ones once under their first name, and persistent buffers; not copied."""
    tensors: dict[str, Tensor] = dict(module.named_parameters())
    persistent = module.state_dict(keep_vars=True)
    return tensors | {name: b for name, b in module.named_buffers() if name in persistent}


@torch.no_grad()
def snapshot(
    module: nn.Module,
    optimizer: PolicyOptimizer,
    critic: CriticTraining | None = None,
    rank: int = 0,
    world: int = 1,
) -> Share:
    """Copy to the host what this rank writes of everything that the next step depends on.

    That is all that training waits for. From a GPU it is copied into pinned memory, all at once (not run on one yet).
    """
    state = {"optimizer": optimizer.values()}
    kinds = {MODEL: model_tensors(module), OPTIMIZER: optimizer.tensors()}
    if critic:
        state["critic"] = critic.optimizer.values()
        kinds |= {CRITIC: model_tensors(critic.module), CRITIC_OPTIMIZER: critic.optimizer.tensors()}
    files: dict[str, Iterable[bytes | memoryview]] = {}
    for stem, tensors in kinds.items():
        own = {name: tensor for name, tensor in tensors.items() if writes(tensor, rank == 0)}
        slices = {name: part for name, tensor in own.items() if (part := Slice.of(tensor)).size != part.shape}
        if own or not rank:
            copies = {name: on_host(local(tensor)) for name, tensor in own.items()}
            files[file_name(stem, rank, world)] = tensor_chunks(copies, slices)
    settled(tensor for tensors in kinds.values() for tensor in tensors.values())
    shapes = {stem: {name: tuple(x.shape) for name, x in tensors.items()} for stem, tensors in kinds.items()}

    def last(folder: Path, names: Iterable[str], told: list[Any]) -> Files:
        check_whole(folder, list(names), shapes)
        return {STATE: [json.dumps({**state, "rng": told}, allow_nan=False).encode()]}

    return Share(files, rng.capture(), last)


def check_whole(folder: Path, names: list[str], shapes: Mapping[str, Shapes]) -> None:
    """Raises CheckpointError unless the files are tensors of exactly these names and shapes, none with a hole."""
    for stem, expected in shapes.items():
        if (found := Stored(folder, stem, names).shapes) != expected:
            raise CheckpointError(f"{folder}: {stem} is not what was to be written: {differing(found, expected)}")


def load_learner(
    path: Path,
    module: nn.Module,
    optimizer: PolicyOptimizer,
    critic: CriticTraining | None = None,
    manifest: Manifest | None = None,
    rank: int = 0,
    world: int = 1,
) -> Manifest:
    """Put the whole content of `path` back in place; training goes on bit for bit on a CPU and as many ranks.

    manifest: that of `path`, if it has been verified; else it is here. Raises CheckpointError when it does not verify
    or belongs to another model; nothing is changed then.
    """
    manifest = manifest or verify(path)
    stored = _stored(path, MODEL, manifest, module)
    state = json.loads((path / STATE).read_bytes())
    valued = None
    if critic:
        if "critic" not in state:
            raise UnusableCheckpoint(f"{path}: written without a critic; {REMEDY}")
        valued = _stored(path, CRITIC, manifest, critic.module)
    try:
        optimizer.load(_moments(path, OPTIMIZER, manifest, optimizer), state["optimizer"])
        if critic:
            critic.optimizer.load(_moments(path, CRITIC_OPTIMIZER, manifest, critic.optimizer), state["critic"])
    except (ValueError, KeyError) as error:
        raise UnusableCheckpoint(f"{path}: {error}; {REMEDY}") from error
    _fetch(stored, module)
    if critic and valued:
        _fetch(valued, critic.module)
    rng.restore(own_state(state["rng"], rank, world))
    return manifest


def own_state(states: Any, rank: int, world: int) -> dict[str, Any]:
    """A rank's random states: its own when there are as many ranks as there were, else those of the first.

    The ranks of a group draw alike, so that what they do by themselves on the same numbers agrees.
    """
    states = states if isinstance(states, list) else [states]  # format 1 held one
    found: dict[str, Any] = states[rank if len(states) == world else 0]
    return found


def load_model_tensors(path: Path, module: nn.Module, manifest: Manifest | None = None) -> None:
    """Put only the model of `path` in place; as `load_learner`, which says what is verified and raised."""
    _fetch(_stored(path, MODEL, manifest or verify(path), module), module)


def _stored(path: Path, stem: str, manifest: Manifest, module: nn.Module) -> Stored:
    """Files of tensors, if these are exactly those of `module`."""
    expected = {name: tuple(tensor.shape) for name, tensor in model_tensors(module).items()}
    stored = Stored(path, stem, manifest.files)
    if stored.shapes != expected:
        where = f"{path / file_name(stem)}: written by another model"
        raise UnusableCheckpoint(f"{where}, differs in {differing(stored.shapes, expected)}; {REMEDY}")
    return stored


def _moments(path: Path, stem: str, manifest: Manifest, optimizer: PolicyOptimizer) -> dict[str, Tensor]:
    """An optimizer's state: what has a parameter's shape is cut as that is, anything else is whole on every rank."""
    parameters = {name: parameter for parameter, name in optimizer.names.items()}
    stored = Stored(path, stem, manifest.files)
    found = {}
    for full, shape in stored.shapes.items():
        parameter = parameters.get(full.rpartition("/")[0])
        if parameter is not None and shape == tuple(parameter.shape):
            found[full] = like(stored.held(full, parameter), parameter)
        else:
            found[full] = stored.whole(full)
    return found


def differing(found: Shapes, expected: Shapes) -> list[str]:
    """A few names of tensors in one and not in the other; `shapes` when the names agree."""
    return sorted(found.keys() ^ expected.keys())[:3] or ["shapes"]


@torch.no_grad()
def _fetch(stored: Stored, module: nn.Module) -> None:
    """Read this rank's parts into a module's tensors."""
    for name, tensor in model_tensors(module).items():
        local(tensor).copy_(stored.held(name, tensor))


@torch.no_grad()
def put(stored: Mapping[str, Tensor], module: nn.Module) -> None:
    """Copy whole tensors into a module's, by name, cut as these are."""
    for name, tensor in model_tensors(module).items():
        tensor.copy_(cut_like(stored[name], tensor))
