"""Losses, gradients and weights that are not finite: told, and never left, published or gone on from."""

import math
from pathlib import Path

import pytest
import torch
from support.learner_service import learner, offline
from torch import Tensor

from midflight.kernel.mistake import UserMistake
from midflight.services.learner.finite import MOST, Updates, broken
from midflight.services.learner.offline.service import Offline

QUICK = {"optim": {"lr": 1e-3, "warmup_steps": 0}, "checkpoint_every": 1, "keep_checkpoints": 2}


def first(made: Offline) -> tuple[str, Tensor]:
    """A parameter that is trained."""
    return next(iter(made.trainer.policy.named_parameters()))


def saved(folder: Path) -> list[str]:
    """Checkpoints, and the model."""
    return sorted(path.name for path in [*folder.glob("checkpoints/*"), *folder.glob("model")])


def test_a_loss_that_is_no_number_ends_the_run_by_name(tmp_path: Path) -> None:
    """Of a model with a NaN: the step, what is wrong, what to do; nothing is left of it."""
    made = offline(tmp_path, **QUICK)
    name, parameter = first(made)
    parameter.data.view(-1)[3] = math.nan
    with pytest.raises(UserMistake, match=rf"step 1: the loss is not finite \(nan\), and {name} .*lower `optim.lr`"):
        made.work(0.0)
    made.beat()
    assert saved(tmp_path) == []


def test_gradients_that_are_never_finite_end_the_run(tmp_path: Path) -> None:
    """The first one is told, each is counted, none is checkpointed, no weight moves; MOST in a row are a mistake."""
    made = offline(tmp_path, **QUICK, steps=100)
    said: list[str] = []
    made._note = lambda level, text: said.append(text)  # type: ignore[method-assign]
    made._updates._note = made._note
    _, parameter = first(made)
    before = parameter.detach().clone()
    parameter.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[no-untyped-call]
    for _ in range(MOST - 1):
        made.work(0.0)
    assert [text.split(":")[0] for text in said] == ["step 1"]
    with pytest.raises(UserMistake, match=rf"step {MOST}: the gradient norm was not finite in the last {MOST} updates"):
        made.work(0.0)
    assert torch.equal(parameter, before)
    assert saved(tmp_path) == []


def test_weights_that_are_not_finite_are_neither_saved_nor_left(tmp_path: Path) -> None:
    """A huge learning rate in the last step: its loss and gradients were finite, and what came of them is not."""
    made = offline(tmp_path, **QUICK | {"checkpoint_every": 20}, steps=1)
    made.trainer.optimizer.lr = 1e39
    made.work(0.0)
    with pytest.raises(UserMistake, match=r"the weights are not finite: .* has NaN or infinity after step 1; they are"):
        made.work(0.0)
    assert saved(tmp_path) == []


def test_weights_that_are_not_finite_are_not_published(tmp_path: Path) -> None:
    """Every rollout would refuse them, and the learner wait for ever."""
    made = learner(tmp_path)
    made.version = 0
    next(made.trainer.policy.parameters()).data.view(-1)[0] = math.inf
    with pytest.raises(UserMistake, match="the weights are not finite"):
        made._publish()


def test_what_counts_is_how_many_in_a_row() -> None:
    """A step of which one update was applied begins anew; rewards may make a loss of any size."""
    said: list[str] = []
    updates = Updates(lambda level, text: said.append(text), str)
    for step in range(1, 5 * MOST):
        body = {"loss": math.inf, "skipped_updates": 2.0, "updates": float(step % 4 == 0)}
        updates.after(step, body, of_rows=False)
    assert len(said) == 1
    with pytest.raises(UserMistake, match="the loss is not finite"):
        updates.after(1, body)


def test_large_numbers_are_not_broken() -> None:
    """A sum that overflows is looked at again; whole numbers are none of these."""
    large = {"a": torch.full((4,), 3e38), "n": torch.tensor([1])}
    assert broken(large) == ""
    assert broken({**large, "b": torch.tensor([0.0, -math.inf])}) == "b"
