"""A rank of the learner's group that does not speak: it does what rank 0 does, in the same order, and ends with it.

Takes   orders over the group's store (`orders`): what a trainer does, in the order in which rank 0 does it.
Sends   nothing but its share of the collectives.
Stores  its part of each checkpoint; rank 0 makes a checkpoint of the parts, and publishes.
Dies    any time, and the group with it: rank 0 sees a peer's end, leaves, and the next one begins from the newest
        checkpoint. When rank 0 ends, this process ends by the signal of its parent's death.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from midflight.kernel.process import die_with_parent
from midflight.kernel.settings import Settings

from .checkpoint import NOTHING, named
from .config import completed
from .mesh import Mesh
from .orders import Orders, unpacked
from .trainer import Trainer


def main() -> int:
    """Join, then follow until told to leave; -> exit code."""
    if parent := os.environ.get("MIDFLIGHT_PARENT"):
        die_with_parent(int(parent))
    settings = Settings.read(
        Path(os.environ["MIDFLIGHT_RUN_DIR"]), os.environ["MIDFLIGHT_NAME"], os.environ.get("MIDFLIGHT_PART", "")
    )
    config = completed(settings.config, settings.slot_of_kind("rollout"))
    torch.set_num_threads(config.threads)
    mesh = Mesh.configured(config)
    assert mesh.orders is not None
    trainer = Trainer(config, settings.model, settings.seed, settings.run_dir / "checkpoints", mesh)
    follow(trainer, mesh.orders)
    return 0


def follow(trainer: Trainer, orders: Orders) -> None:
    """Do what is ordered until that is to leave."""

    can: dict[str, Callable[[Any], object]] = {
        "restore": lambda name: trainer.go_on_from(named(trainer.root / name) if name else NOTHING),
        "read_examples": lambda _: trainer.read_examples(),
        "sft_step": lambda _: trainer.sft_step(),
        "rl_step": lambda body: trainer.rl_step(unpacked(body)),
        "turn_knob": lambda body: trainer.turn_knob(*body),
        "reconfigure": lambda body: trainer.reconfigure(type(trainer.config).model_validate(body)),
        "weights": lambda _: trainer.weights(),
        "save": lambda _: trainer.save({}),
    }
    while True:
        name, body = orders.follow()
        if name == "leave":
            return
        can[name](body)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads must not turn a clean end into a crash
