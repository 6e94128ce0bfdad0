"""A topology's supervised phase without a run around it: `python benchmarks/warm.py SEED FOLDER [NAME]` writes a model.

NAME is that of a file in `configs`, the demo if left out. Examples are drawn anew for each seed.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import as_a_service

from midflight.kernel.config import load_topology
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.trainer import Trainer
from midflight.services.model.build import save_model

CONFIGS = Path(__file__).parents[1] / "configs"


def learner(topology: Path, *overrides: str) -> tuple[LearnerConfig, dict[str, Any]]:
    """What the learner and the model are told."""
    loaded = load_topology(str(topology), [], list(overrides))
    config = loaded.topology.services["learner"]
    assert isinstance(config, LearnerConfig)
    assert config.sft
    return config, loaded.data["model"]


def main(seed: int, folder: Path, name: str) -> None:
    """Train and save."""
    torch.set_num_threads(1)
    topology = CONFIGS / f"{name}.yaml"
    sft = learner(topology)[0].sft
    assert sft
    data = sft.data.replace("seed=1&", f"seed={seed + 1}&")
    config, model = learner(topology, f"seed={seed}", f"services.learner.sft.data={data}")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(config, model, seed, Path(scratch))
        trainer.read_examples()
        while trainer.stage == "sft":
            trainer.sft_step()
        save_model(trainer.policy.lm, trainer.tokenizer, folder)


if __name__ == "__main__":
    as_a_service()
    main(int(sys.argv[1]), Path(sys.argv[2]), *(sys.argv[3:] or ["demo"]))
