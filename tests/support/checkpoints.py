"""Checkpoints that a test waits for."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from midflight.services.learner.checkpoints.checkpoint import Manifest
from midflight.services.learner.checkpoints.saving import Share, save
from midflight.services.learner.checkpoints.snapshot import snapshot
from midflight.services.learner.network.critic import CriticTraining
from midflight.services.learner.optimizers.optim import PolicyOptimizer


def save_files(
    root: Path, step: int, files: Mapping[str, Iterable[bytes]], extra: Mapping[str, Any], keep: int = 2
) -> Manifest:
    """A checkpoint of any files, by one process."""
    manifest = save(root, step, Share(files), extra, keep)
    assert manifest is not None
    return manifest


def save_learner(
    root: Path,
    step: int,
    module: nn.Module,
    optimizer: PolicyOptimizer,
    extra: Mapping[str, Any],
    critic: CriticTraining | None = None,
    keep: int = 2,
) -> Manifest:
    """A checkpoint of a learner, by one process."""
    manifest = save(root, step, snapshot(module, optimizer, critic), extra, keep)
    assert manifest is not None
    return manifest
