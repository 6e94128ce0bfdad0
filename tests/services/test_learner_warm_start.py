"""A warm start and what follows it: a schedule without room, and a topology that changes its mind about it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.learner_service import MODEL

from midflight.services.learner.checkpoints.checkpoint import UnusableCheckpoint
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.trainer import Trainer

WARM = {"data": "task:sort6-10?rows=40&split=train&seed=1", "batch_size": 4, "optim": {"lr": 1e-1, "warmup_steps": 0}}
FALLING = {"schedule": "cosine", "warmup_steps": 5}


def trainer(tmp_path: Path, **fields: Any) -> Trainer:
    """Restored, with its data."""
    config = LearnerConfig.model_validate({"device": "cpu", "bf16": "off", **fields})
    made = Trainer(config, MODEL, 3, tmp_path / "checkpoints")
    made.restore()
    made.read_examples()
    return made


def test_a_schedule_of_rl_without_room_is_found_before_the_warm_start(tmp_path: Path) -> None:
    """At the beginning, and when the number of steps is changed meanwhile."""
    sft = {**WARM, "steps": 2}
    with pytest.raises(ValueError, match="schedule cosine needs total_steps larger than warmup_steps"):
        trainer(tmp_path, sft=sft, optim=FALLING, steps=5)
    made = trainer(tmp_path, sft=sft, optim=FALLING, steps=6)
    with pytest.raises(ValueError, match="schedule cosine"):
        made.reconfigure(made.config.model_copy(update={"steps": 5}))
    assert made.config.steps == 6
    made.sft_step()
    made.sft_step()
    assert made.stage == "rl"


def test_half_a_warm_start_is_not_gone_on_from_without_one(tmp_path: Path) -> None:
    """A run whose topology lost its `sft` in the middle."""
    made = trainer(tmp_path, sft={**WARM, "steps": 2})
    made.sft_step()
    made.save({})
    made.saver.take()
    with pytest.raises(UnusableCheckpoint, match="warm start"):
        trainer(tmp_path)


@pytest.mark.parametrize("lora", [None, {"r": 2}], ids=["all weights", "adapters"])
def test_the_reference_stays_the_warmed_policy_without_the_section(tmp_path: Path, lora: dict[str, int] | None) -> None:
    """Once the warm start is over, nothing of `sft` is needed to go on, and what KL compares with is the same."""
    common = {"kl": {"type": "loss", "coef": 0.1}, "lora": lora}
    made = trainer(tmp_path, sft={**WARM, "steps": 1}, **common)
    made.sft_step()
    made.save({})
    made.saver.take()
    again = trainer(tmp_path, **common)
    assert isinstance(made.reference, Policy)
    assert isinstance(again.reference, Policy)
    was, now = made.reference.lm.state_dict(), again.reference.lm.state_dict()
    assert all(torch.equal(was[name], now[name]) for name in was)
