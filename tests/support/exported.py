"""A run that is over, with checkpoints and metrics as its learner and kernel write them, but seconds cheaper."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from midflight.kernel.journal import Journal
from midflight.kernel.rundir import RunDir
from midflight.services.learner.network.lora import adapt, merged
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.training_config import LoraConfig
from midflight.services.model.build import Model
from midflight.services.model.open import open_model
from support.checkpoints import save_learner

SHAPE: dict[str, Any] = {
    "architecture": "qwen3",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "init_std": 0.3,
    "tie_word_embeddings": True,
}
WARM = 4
"""Supervised steps before RL."""


@dataclass
class Past:
    """The run, and its model as it was at the newest checkpoint."""

    folder: RunDir
    model: Model
    tokenizer: Any

    def checkpoint(self, step: int) -> Path:
        """That of an RL step."""
        return self.folder.checkpoints / f"step-{WARM + step:08d}"


def past(
    where: Path, steps: tuple[int, ...] = (1, 2), dtype: str = "float32", lora: LoraConfig | None = None, **model: Any
) -> Past:
    """A checkpoint in the warm start, one step before its end, and one at each of `steps` of RL; weights differ."""
    section = {"build": SHAPE, "tokenizer": "bytes", "dtype": dtype, **model}
    topology = {
        "run": "toy",
        "model": section,
        "services": {"learner": {"steps": 9, "loss": "ppo", "sft": {"steps": 4}}},
    }
    with RunDir(where).create() as folder:
        folder.write_json(folder.config_json, topology)
        tokenizer, lm = open_model(section, seed=5)
        if lora:
            adapt(lm, lora, seed=5)
        policy = Policy(lm)
        optimizer = PolicyOptimizer(policy, OptimSettings())
        for step in (-1, *steps):
            with torch.no_grad():
                for tensor in policy.parameters():
                    tensor.add_(0.01 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(step + 9)))
            done = {"stage": "rl", "step": step, "sft_done": WARM, "version": step, "lora": lora and lora.model_dump()}
            warm = {"stage": "sft", "step": 0, "sft_done": WARM + step, "version": None}
            save_learner(folder.checkpoints, WARM + step, lm, optimizer, warm if step < 0 else done, keep=9)
        journal = Journal(folder.journal, dict)
        for number, step in enumerate(steps, 1):
            body = {"reward_mean": 0.25 * step, "train_s": 1.0}
            event = {"t": "event", "seq": number, "ns": number, "source": "learner#1", "topic": "metrics", "step": step}
            journal.append({**event, "body": body})
        journal.close()
    _, plain = open_model(section, seed=5)  # a Policy's attention needs packed rows
    plain.load_state_dict(merged(lm.state_dict(), lora))
    return Past(folder, plain, tokenizer)


def flip(path: Path) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
