"""The peer: TRL's GRPOTrainer on the demo's task. Run by `trl_peer.py` in its own virtual environment.

    python benchmarks/trl_child.py MODEL_DIR PROMPTS.jsonl OUT.json --seed 0 --threads 1

The same batch as midflight's demo: 16 prompts x 8 completions, two optimizer steps a batch, Dr. GRPO, no KL. A step
here is one such batch. OUT holds, for every step, seconds since training began and the batch's mean reward.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPTS, GROUP, UPDATES = 16, 8, 2


def arguments() -> argparse.Namespace:
    """The command line, read before torch is imported."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--target", type=float, default=0.7)
    parser.add_argument("--window", type=int, default=5)
    return parser.parse_args()


def settings(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """GRPOConfig: everything that is not the same size or rate as midflight's is at its fastest."""
    return {
        "output_dir": folder,
        "seed": options.seed,
        "max_steps": UPDATES * options.steps,
        "per_device_train_batch_size": PROMPTS * GROUP // UPDATES,
        "steps_per_generation": UPDATES,
        "num_generations": GROUP,
        "max_completion_length": 12,
        "temperature": 1.0,
        "learning_rate": 5e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 5 * UPDATES,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        "epsilon": 0.2,
        "beta": 0.0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def main(options: argparse.Namespace) -> None:
    """Train until the moving mean of the reward reaches the target."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(options.threads)
    rewards: list[float] = []
    steps: list[tuple[float, float]] = []

    def exact(completions: list[str], answer: list[str], **_: object) -> list[float]:
        scores = [float(said == right) for said, right in zip(completions, answer, strict=True)]
        rewards.append(sum(scores) / len(scores))
        return scores

    class Watch(TrainerCallback):
        began = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: object) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
            if state.global_step % UPDATES == 0:
                steps.append((time.perf_counter() - self.began, rewards[-1]))
                last = [reward for _, reward in steps[-options.window :]]
                control.should_training_stop = len(last) == options.window and sum(last) / len(last) >= options.target

    rows = [json.loads(line) for line in options.prompts.read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=exact,
            args=GRPOConfig(**settings(options, folder)),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(options.model),
            callbacks=[Watch()],
        )
        trainer.train()
    options.out.write_text(json.dumps(steps))


if __name__ == "__main__":
    chosen = arguments()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(chosen)
