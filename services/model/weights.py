"""Publication of weights: one safetensors slot per version, replaced never, parsed only after its digest agrees.

There is no fsync: the folder is shared memory, and a lost machine loses it anyway; the durable copy is the learner's
checkpoint. Tensors that share storage (tied embeddings) are stored once, their other names in the metadata.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load, save

from midflight.messages import shm
from midflight.messages.weights import Handle

PATTERN = "w-*.safetensors"


def write_weights(folder: Path, version: int, state: Mapping[str, torch.Tensor]) -> Handle:
    """Publish `state` as `w-<version>.safetensors`. Tensors keep their dtype; those on a device are copied to the host.

    Raises OSError when the memory is full; nothing is left behind then.
    """
    owners, tied = _split_tied(state)
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in owners.items()}
    # One metadata key only: safetensors writes several in random order, and the digest must depend on content alone.
    return shm.put(folder, f"w-{version}.safetensors", save(host, {"tied": json.dumps(tied)}))


def read_weights(handle: Handle) -> dict[str, torch.Tensor]:
    """The tensors of a handle by name, tied names included. Raises messages.shm.CorruptSlot."""
    data = shm.get(handle)
    tensors: dict[str, torch.Tensor] = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tied: dict[str, str] = json.loads(header["__metadata__"]["tied"])
    return tensors | {name: tensors[owner] for name, owner in tied.items()}


def retain(folder: Path, keep: int = 2) -> None:
    """Delete all but the newest `keep` versions, and what a crash left."""
    shm.retain(folder, PATTERN, keep)


def _split_tied(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Separate the first name of each storage from later names of the very same tensor."""
    owners: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in seen:
            tied[name] = seen[key]
        else:
            seen[key] = name
            owners[name] = tensor
    return owners, tied
