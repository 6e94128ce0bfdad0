"""The demo's warm start by every update rule: its loss after STEPS steps, and the CPU time that the updates take.

python benchmarks/optimizers.py
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from common import as_a_service

from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.trainer import Trainer

STEPS = 120
LAST = 20
"""Steps over whose losses the mean is taken."""
RULES: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 3e-3},
    "adamw, lookahead": {"lr": 3e-3, "lookahead": {"k": 5, "alpha": 0.5}},
    "adamw, wsd": {"lr": 3e-3, "schedule": "wsd"},
    "muon": {"name": "muon", "lr": 3e-3},
    "lamb": {"name": "lamb", "lr": 1e-2},
    "sgd": {"name": "sgd", "lr": 0.3, "momentum": 0.9},
}


def measured(demo: dict[str, Any], optim: dict[str, Any], root: Path) -> tuple[float, float, float]:
    """(loss, CPU seconds, of which updates) of one warm start."""
    learner = {**demo["services"]["learner"], "device": "cpu", "max_new_tokens": 12, "kl": {}}
    common = {"betas": [0.9, 0.98], "weight_decay": 0.0, "warmup_steps": 30}
    learner["sft"] = {**learner["sft"], "steps": STEPS + 1, "optim": {**common, **optim}}
    trainer = Trainer(LearnerConfig.model_validate(learner), demo["model"], 0, root)
    trainer.read_examples()
    update, spent = trainer.optimizer.update, [0.0]

    def timed() -> float:
        began = time.process_time()
        norm = update()
        spent[0] += time.process_time() - began
        return norm

    trainer.optimizer.update = timed  # type: ignore[method-assign]
    began = time.process_time()
    losses = [trainer.sft_step().metrics["loss"] for _ in range(STEPS)]
    return sum(losses[-LAST:]) / LAST, time.process_time() - began, spent[0]


def main() -> None:
    """Print a row a rule."""
    torch.set_num_threads(1)
    demo = yaml.safe_load((Path(__file__).parents[1] / "configs/demo.yaml").read_text())
    for name, optim in RULES.items():
        with tempfile.TemporaryDirectory() as root:
            loss, seconds, updates = measured(demo, optim, Path(root))
        print(f"{name:18} loss {loss:.3f}  CPU {seconds:.1f} s, of which updates {updates:.2f} s", flush=True)


if __name__ == "__main__":
    as_a_service()
    main()
