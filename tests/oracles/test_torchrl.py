"""Agreement with torchrl and scipy, which know terminations apart from truncations, to 1e-12 in float64."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from support.some_steps import some_steps
from torch import Tensor
from torch.testing import assert_close

from midflight.services.algorithms import estimators
from midflight.services.algorithms.steps import Steps

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchrl.objectives.value import functional as torchrl

GAMMA, LAMDA = 0.97, 0.9


def columns(*tensors: Tensor) -> list[Tensor]:
    """torchrl's layout [B, T, 1]."""
    return [x.unsqueeze(-1) for x in tensors]


def same(found: Tensor, expected: Tensor) -> None:
    assert_close(found, expected.squeeze(-1), rtol=0.0, atol=1e-12)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """torchrl makes constants in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=range(3))
def steps(request: pytest.FixtureRequest) -> Steps:
    """Random steps with both kinds of end inside."""
    return some_steps(request.param, rows=4, length=31)


def test_gae(steps: Steps) -> None:
    """Advantages and value targets, done and terminated apart."""
    v, vn, r, done, terminated = columns(steps.values, steps.next_values, steps.rewards, steps.cut, steps.terminated)
    advantages, targets = torchrl.generalized_advantage_estimate(GAMMA, LAMDA, v, vn, r, done, terminated)
    found = estimators.gae(steps, GAMMA, LAMDA)
    same(found.advantages, advantages)
    same(found.returns, targets)


def test_td_lambda(steps: Steps) -> None:
    """Lambda returns."""
    vn, r, done, terminated = columns(steps.next_values, steps.rewards, steps.cut, steps.terminated)
    same(
        estimators.td_lambda(steps, GAMMA, LAMDA).returns,
        torchrl.td_lambda_return_estimate(GAMMA, LAMDA, vn, r, done, terminated),
    )


def test_vtrace(steps: Steps) -> None:
    """torchrl clips the policy gradient's ratio at rho_bar too; its first arguments are log pi and log mu."""
    v, vn, r, done, terminated = columns(steps.values, steps.next_values, steps.rewards, steps.cut, steps.terminated)
    (x,) = columns(steps.log_ratio)
    advantages, targets = torchrl.vtrace_advantage_estimate(
        GAMMA, x, torch.zeros_like(x), v, vn, r, done, terminated, rho_thresh=1.2, c_thresh=0.9
    )
    found = estimators.vtrace(steps, GAMMA, rho_bar=1.2, c_bar=0.9)
    same(found.returns, targets)
    same(found.advantages, advantages)


def test_reward_to_go(steps: Steps) -> None:
    """Without values the Monte Carlo return is a linear filter run backwards, trajectory by trajectory."""
    nothing = torch.zeros_like(steps.values)
    bare = Steps.of(steps.rewards, nothing, nothing, steps.cut)
    found = estimators.reinforce(bare, GAMMA).returns
    for row in range(len(found)):
        begin = 0
        for end in steps.cut[row].nonzero().squeeze(1).tolist():
            rewards = steps.rewards[row, begin : end + 1].numpy()
            expected = np.flip(lfilter([1.0], [1.0, -GAMMA], np.flip(rewards))).copy()
            assert_close(found[row, begin : end + 1], torch.from_numpy(expected), rtol=0.0, atol=1e-12)
            begin = end + 1
