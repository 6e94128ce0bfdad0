"""Publication of weights: one safetensors file per version, named by its digest, replaced never, read after checking.

The writer writes beside and renames, so a reader sees a whole file or none. There is no fsync: the directory is
shared memory, and a lost machine loses it anyway; the durable copy is the learner's checkpoint. Files may be
unlinked while a reader holds them. Tensors that share storage (tied embeddings) are stored once, their other names in
the file's metadata under `tied`.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save_file

_hash = functools.partial(hashlib.blake2b, digest_size=16)
_NAME = re.compile(r"w-(\d+)\.safetensors")


class CorruptWeights(Exception):
    """The file of a handle is missing, or is not the one that was published."""


@dataclass(frozen=True, slots=True)
class WeightsHandle:
    """Where version `version` lies and what it must be: blake2b-128 hex digest and size of the whole file."""

    version: int
    path: str
    digest: str
    bytes: int


def write_weights(directory: str | Path, version: int, state: Mapping[str, torch.Tensor]) -> WeightsHandle:
    """Publish `state` as `w-<version>.safetensors` in `directory` and return its handle.

    Tensors keep their dtype; those on a device are copied to the host.
    """
    folder = Path(directory)
    path = folder / f"w-{version}.safetensors"
    beside = folder / f"{path.name}.tmp"
    owners, tied = _split_tied(state)
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in owners.items()}
    # One metadata key only: safetensors writes several in random order, and the digest must depend on content alone.
    save_file(host, str(beside), {"tied": json.dumps(tied)})
    with beside.open("rb") as file:
        digest = hashlib.file_digest(file, _hash).hexdigest()
    size = beside.stat().st_size
    os.replace(beside, path)
    return WeightsHandle(version, str(path), digest, size)


def read_weights(handle: WeightsHandle) -> dict[str, torch.Tensor]:
    """Return the tensors of `handle` by name, tied names included; nothing is parsed before the digest agrees.

    The checked bytes are the parsed bytes: the file is read once. Raises CorruptWeights.
    """
    where = f"weights version {handle.version} at {handle.path}"
    try:
        data = Path(handle.path).read_bytes()
    except OSError as error:
        raise CorruptWeights(f"{where}: {error.strerror}; ask for the newest version") from error
    if len(data) != handle.bytes:
        raise CorruptWeights(f"{where}: {len(data)} bytes, published with {handle.bytes}; ask for it again")
    digest = _hash(data).hexdigest()
    if digest != handle.digest:
        raise CorruptWeights(f"{where}: digest {digest}, published with {handle.digest}; ask for it again")
    tensors: dict[str, torch.Tensor] = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tied: dict[str, str] = json.loads(header["__metadata__"]["tied"])
    return tensors | {name: tensors[owner] for name, owner in tied.items()}


def retain(directory: str | Path, keep: int = 2) -> list[int]:
    """Delete all but the newest `keep` versions and any unfinished file; return the versions kept, oldest first.

    Only the writer may call it: an unfinished file of another writer would be lost.
    """
    folder = Path(directory)
    for unfinished in folder.glob("w-*.safetensors.tmp"):
        unfinished.unlink(missing_ok=True)
    versions = sorted(int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))
    old = max(0, len(versions) - keep)
    for version in versions[:old]:
        (folder / f"w-{version}.safetensors").unlink(missing_ok=True)
    return versions[old:]


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
