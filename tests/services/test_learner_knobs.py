"""Knobs of the learner: its live fields act on the next step, and what cannot be is refused with nothing changed."""

from pathlib import Path

import pytest
import torch
from support.learner_service import learner
from support.learner_toys import random_batch

from midflight.messages.base import Scalar
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.knobs import declarations


def test_what_is_declared_can_be_used(tmp_path: Path) -> None:
    """Every declared knob takes its default and says the next step; nothing it ignores is declared."""
    made = learner(tmp_path, kl={"type": "loss"}, objective_weights={"exact": 2.0})
    names = {knob.name: knob for knob in made.knobs()}
    for name, knob in names.items():
        assert made.apply_knob(name, knob.default) == 1, name
    assert {"kl.coef", "objectives.weights.exact", "optim.max_grad_norm", "learner.steps"} <= names.keys()
    assert "learner.adv.norm_var" in names
    assert not {"learner.adv.gamma", "learner.adv.whiten"} & names.keys()
    critic = {knob.name for knob in declarations(LearnerConfig.model_validate({"adv": {"estimator": "gae"}}), "a-b")}
    assert {"a_b.adv.gamma", "a_b.adv.whiten"} <= critic
    assert "a_b.adv.norm_var" not in critic
    assert "kl.coef" not in critic


@pytest.mark.parametrize(
    ("field", "value", "metric"),
    [
        ("update_per_rollout", 3, "updates"),
        ("aggregation", "token_mean", "policy_loss"),
        ("temperature", 0.5, "entropy"),
        ("adv.norm_var", True, "advantage_std"),
        ("tis_cap", 1e-3, "weight_capped"),
    ],
)
def test_a_live_field_changes_the_next_step(tmp_path: Path, field: str, value: Scalar, metric: str) -> None:
    """The step's numbers are those of a learner that was configured so from the start."""
    steps = {}
    for name, before, after in (("never", {}, {}), ("live", {}, {field: value}), ("before", {field: value}, {})):
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        torch.manual_seed(0)
        made = learner(folder, {f"learner.{k}": v for k, v in before.items()}, loss="tis")
        for k, v in after.items():
            assert made.apply_knob(f"learner.{k}", v) == 1
        report = made.trainer.rl_step(random_batch(4)).metrics
        steps[name] = report | {"policy_loss": report["loss"] if metric == "policy_loss" else report["policy_loss"]}
    assert steps["live"] == steps["before"]
    assert steps["live"][metric] != steps["never"][metric]


def test_max_grad_norm_bounds_the_update(tmp_path: Path) -> None:
    """Adam's first moments are a tenth of the first gradient, which a small norm cuts to its length."""
    moments = []
    for number, norm in enumerate((1.0, 1e-4)):
        folder = tmp_path / str(number)
        folder.mkdir()
        made = learner(folder)
        assert made.apply_knob("optim.max_grad_norm", norm) == 1
        made.trainer.rl_step(random_batch(4))
        states = made.trainer.optimizer.rules[0].state.values()
        moments.append(torch.cat([state["exp_avg"].flatten() for state in states]).norm().item())
    assert moments[1] == pytest.approx(1e-5, rel=1e-2)
    assert moments[0] > 5e-5


def test_the_archive_follows(tmp_path: Path) -> None:
    """Groups, steps between and files kept are read at the next step."""
    made = learner(tmp_path)
    batch = random_batch(1)
    assert made.archive.watch(batch, 1, references=False) is not None
    made.apply_knob("learner.samples.groups", 0)
    assert made.archive.watch(batch, 1, references=False) is None
    made.apply_knob("learner.samples.groups", 1)
    made.apply_knob("learner.samples.every", 2)
    assert made.archive.watch(batch, 1, references=False) is None
    watched = made.archive.watch(batch, 2, references=False)
    assert watched is not None
    assert len(watched.rows) == 4


def test_steps_that_are_done_cannot_be_undone(tmp_path: Path) -> None:
    """Fewer steps than are trained are refused; more of them stretch the schedule."""
    made = learner(tmp_path, steps=20, optim={"schedule": "cosine", "lr": 1e-3, "warmup_steps": 1})
    for _ in range(3):
        made.trainer.rl_step(random_batch(1))
    with pytest.raises(ValueError, match="3 steps are trained already"):
        made.apply_knob("learner.steps", 3)
    assert made.apply_knob("learner.steps", 4) == 4
    near_the_end = made.trainer.rl_step(random_batch(1)).metrics["lr"]
    made.apply_knob("learner.steps", 1000)
    assert made.trainer.rl_step(random_batch(1)).metrics["lr"] > near_the_end


def test_a_refusal_changes_nothing(tmp_path: Path) -> None:
    """A schedule too short for its warm-up: the old configuration and the old settings go on."""
    made = learner(tmp_path, steps=20, optim={"schedule": "cosine", "warmup_steps": 5})
    config, settings = made.config, made.trainer.settings
    with pytest.raises(ValueError, match="total_steps larger than warmup_steps"):
        made.apply_knob("learner.steps", 4)
    assert (made.config, made.trainer.config, made.trainer.settings) == (config, config, settings)


def test_values_of_before_that_do_not_fit_are_told_and_left(tmp_path: Path) -> None:
    """A learner starts all the same when the topology has changed under what was set."""
    made = learner(tmp_path, {"learner.prefetch": 99})
    assert made.config.prefetch == 1
    assert learner(tmp_path, {"learner.prefetch": 3, "learner.checkpoint_every": 2}).config.prefetch == 3
