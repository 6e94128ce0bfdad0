"""A rank of the learner's group that does not speak: it does what rank 0 does, in the same order, and ends with it.

Takes   orders over the group's store (`orders`): what a trainer does, in the order in which rank 0 does it.
Sends   nothing but its share of the collectives.
Stores  nothing: rank 0 writes checkpoints and publishes.
Dies    any time, and the group with it: rank 0 sees a peer's end, leaves, and the next one begins from the newest
        checkpoint. When its parent ends (rank 0, or `midflight join` on another host), so does this process, by the
        signal of its parent's death; when rank 0 ends, by the end of its store.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from midflight.kernel.boot import last_words
from midflight.kernel.process import die_with_parent
from midflight.kernel.settings import Settings
from midflight.services.learner.base import TrainerBase
from midflight.services.learner.config import LearnerConfig, completed
from midflight.services.learner.offline.trainer import OfflineTrainer
from midflight.services.learner.trainer import Trainer

from .mesh import Mesh
from .orders import Orders


def main() -> int:
    """Join, then follow until told to leave; -> exit code."""
    if parent := os.environ.get("MIDFLIGHT_PARENT"):
        die_with_parent(int(parent))
    settings = Settings.read(
        Path(os.environ["MIDFLIGHT_RUN_DIR"]), os.environ["MIDFLIGHT_NAME"], os.environ.get("MIDFLIGHT_PART", "")
    )
    config = settings.config
    torch.set_num_threads(config.threads)
    mesh = Mesh.configured(config)
    assert mesh.orders is not None
    given = (settings.model, settings.seed, settings.run_dir / "checkpoints", mesh)
    if isinstance(config, LearnerConfig):
        follow(Trainer(completed(config, settings.slot_of_kind("rollout")), *given), mesh.orders)
    else:
        follow(OfflineTrainer(config, *given), mesh.orders)
    return 0


def follow(trainer: TrainerBase[Any], orders: Orders) -> None:
    """Do what is ordered until that is to leave."""
    can = trainer.obeys()
    while True:
        name, body = orders.follow()
        if name == "leave":
            return
        can[name](body)


if __name__ == "__main__":
    try:
        code = main()
    except Exception as error:
        traceback.print_exception(error)
        sys.stderr.write(last_words(error) + "\n")
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads must not turn a clean end into a crash, nor hold up one
