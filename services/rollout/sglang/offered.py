"""Published weights as a server takes them: checked once, then a folder to load from, and tensors to send."""

import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from midflight.messages.shm import CorruptSlot
from midflight.messages.weights import WeightsNew
from midflight.services.model.weights import read_weights
from midflight.services.rollout.forward import check_weights

NAME = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Offered:
    """One version of the policy, checked: whole, of the model's shapes, finite."""

    version: int
    step: int
    folder: Path
    tensors: Mapping[str, Tensor]
    """By Hugging Face name; empty unless they are to be sent."""


def check(new: WeightsNew, shapes: Mapping[str, torch.Size], tied: set[str], folder: Path, *, keep: bool) -> Offered:
    """Read what the learner published, and lay it into `folder`/VERSION as `model.safetensors`, by a link if it can.

    shapes: by name, what the model has; those `tied` to others may be missing. keep: the tensors too. Raises
    CorruptSlot or BadWeights.
    """
    state = read_weights(new.handle)
    check_weights(shapes, state, tied)
    place = folder / str(new.version)
    place.mkdir(parents=True, exist_ok=True)
    beside, target = place / f".{NAME}", place / NAME
    beside.unlink(missing_ok=True)
    try:
        os.link(new.handle.path, beside)  # the learner unlinks old versions: a link keeps the bytes
    except OSError:
        try:
            shutil.copyfile(new.handle.path, beside)
        except OSError as error:
            raise CorruptSlot(f"{new.handle.path}: {error.strerror}; ask for a newer version") from error
    beside.replace(target)
    return Offered(new.version, new.step, place, state if keep else {})


def forget(folder: Path, keep: Collection[int]) -> None:
    """Remove the folders of all versions but `keep`, and newer ones, which are laid there to be offered next."""
    for old in folder.iterdir():
        if old.name.isdigit() and int(old.name) not in keep and int(old.name) < max(keep):
            shutil.rmtree(old, ignore_errors=True)
