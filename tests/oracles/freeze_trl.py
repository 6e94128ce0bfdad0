"""Writes trl.json: what TRL 1.16's DPO, reward and GKD trainers say, in float32 on a CPU.

Run where it is installed:

    pip install -c tests/constraints.txt torch==2.13.0 trl==1.16.0
    PYTHONPATH=.pkg:tests python tests/oracles/freeze_trl.py

Models are `support.learner_toys.tiny_lm` with seeds, token ids those of `pairs` here; TRL's own trainers compute the
losses, its own collators' layout (chosen rows, then rejected rows, padded on the right) is what they are given.
"""

import importlib
import json
import random
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from support.learner_toys import VOCAB, tiny_lm, tiny_scorer

OUT = Path(__file__).with_name("trl.json")
POLICY, REFERENCE, PAIRS = 1, 2, 4
PAD = 0
DPO: dict[str, dict[str, Any]] = {
    "sigmoid": {"loss_type": ["sigmoid"], "beta": 0.1},
    "ipo": {"loss_type": ["ipo"], "beta": 0.3},
}
SMOOTHING = 0.2


def pairs() -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) in tokens, none of them the pad token."""
    rng = random.Random(3)

    def some(low: int, high: int) -> list[int]:
        return [rng.randrange(1, VOCAB) for _ in range(rng.randint(low, high))]

    return [(some(2, 6), some(1, 6), some(1, 6)) for _ in range(PAIRS)]


def batch(rows: list[tuple[list[int], list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """As the collator of TRL's DPO trainer lays it out."""
    texts = [(p, c) for p, c, _ in rows] + [(p, r) for p, _, r in rows]
    longest = max(len(p) + len(c) for p, c in texts)
    padded = [[*p, *c] + [PAD] * (longest - len(p) - len(c)) for p, c in texts]
    ours = [[0] * len(p) + [1] * len(c) + [0] * (longest - len(p) - len(c)) for p, c in texts]
    present = [[1] * (len(p) + len(c)) + [0] * (longest - len(p) - len(c)) for p, c in texts]
    return {
        "input_ids": torch.tensor(padded),
        "attention_mask": torch.tensor(present),
        "completion_mask": torch.tensor(ours),
    }


def norm(model: torch.nn.Module) -> float:
    """Of the gradients."""
    return float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9))


def tokenizer() -> Any:
    """TRL wants one; nothing is tokenized by it here."""
    return importlib.import_module("midflight.services.model.tokenizer").byte_tokenizer()


def common(folder: str) -> dict[str, Any]:
    """Arguments of every trainer."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": PAIRS,
        "use_cpu": True,
        "report_to": [],
        "bf16": False,
        "gradient_checkpointing": False,
        "max_steps": 1,
    }


def dpo(folder: str, rows: Any) -> dict[str, Any]:
    """Loss and gradient norm by kind; conservative DPO through `aot`, which equals it for a batch of one pair."""
    trl, data = importlib.import_module("trl"), importlib.import_module("datasets").Dataset
    some = data.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}] * PAIRS)
    found: dict[str, Any] = {}
    for name, options in DPO.items():
        found[name] = _dpo(trl, folder, some, rows, options)
    found["conservative"] = [
        _dpo(trl, folder, some, [row], {"loss_type": ["aot"], "beta": 0.1, "label_smoothing": SMOOTHING})
        for row in rows
    ]
    return found


def _dpo(trl: Any, folder: str, some: Any, rows: Any, options: dict[str, Any]) -> list[float]:
    policy, reference = tiny_lm(POLICY, torch.float32), tiny_lm(REFERENCE, torch.float32)
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=trl.DPOConfig(**common(folder), **options),
        train_dataset=some,
        processing_class=tokenizer(),
    )
    loss = trainer.compute_loss(trainer.model, batch(rows))
    loss.backward()
    return [float(loss), norm(trainer.model)]


def reward(folder: str, rows: Any) -> list[float]:
    """Loss and gradient norm of a sequence classifier with the policy's body and `score`."""
    trl, data = importlib.import_module("trl"), importlib.import_module("datasets").Dataset
    some = data.from_list([{"chosen": "a b", "rejected": "a c"}] * PAIRS)
    trainer = trl.RewardTrainer(
        model=tiny_scorer(POLICY, torch.float32),
        args=trl.RewardConfig(**common(folder)),
        train_dataset=some,
        processing_class=tokenizer(),
    )
    given = batch(rows)
    loss = trainer.compute_loss(trainer.model, {key: given[key] for key in ("input_ids", "attention_mask")})
    loss.backward()
    return [float(loss), norm(trainer.model)]


def gkd() -> dict[str, float]:
    """Sum over positions of GKD's divergence at both ends of its beta, at temperature 1.5."""
    trainer = importlib.import_module("trl.experimental.gkd.gkd_trainer").GKDTrainer
    student, teacher = logits()
    return {
        name: float(trainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=1.5, reduction="sum"))
        for name, beta in (("forward_kl", 0), ("reverse_kl", 1))
    }


def logits() -> tuple[torch.Tensor, torch.Tensor]:
    """Of a student and a teacher [1, 7, 11]."""
    generator = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(1, 7, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher


def main() -> None:
    """Write the file."""
    rows = pairs()
    with tempfile.TemporaryDirectory() as folder:
        found = {"dpo": dpo(folder, rows), "reward": reward(folder, rows), "gkd": gkd()}
    found["versions"] = {name: version(name) for name in ("trl", "torch", "transformers")}
    OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
