"""The demo's supervised phase without a run around it: `python benchmarks/warm.py SEED FOLDER` writes a model."""

import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import torch

from midflight.kernel.config import load_topology
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.trainer import Trainer
from midflight.services.model.build import save_model

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"


def main(seed: int, folder: Path) -> None:
    """Train and save."""
    torch.set_num_threads(1)
    overrides = [
        f"seed={seed}",
        f"services.learner.sft.data=task:rev6-10?rows=25600&split=train&seed={seed + 1}&noise=0.5",
    ]
    loaded = load_topology(str(DEMO), [], overrides)
    config = loaded.topology.services["learner"]
    assert isinstance(config, LearnerConfig)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(config, loaded.data["model"], seed, Path(scratch))
        trainer.read_examples()
        while trainer.stage == "sft":
            trainer.sft_step()
        save_model(trainer.policy.lm, trainer.tokenizer, folder)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
