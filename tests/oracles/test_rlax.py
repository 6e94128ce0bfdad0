"""Agreement with rlax 0.1.9, frozen by freeze_rlax.py, to 1e-12; where it differs on purpose, by how much."""

import json

import torch
from torch import Tensor
from torch.testing import assert_close

from midflight.services.algorithms import estimators
from oracles.freeze_rlax import GAMMA, LAMDA, OUT, ended_steps

ROWS = json.loads(OUT.read_text())["rows"]
STEPS = ended_steps()


def frozen(name: str) -> Tensor:
    """rlax's answer, [rows, T]."""
    return torch.tensor([row[name] for row in ROWS], dtype=torch.float64)


def agree(found: Tensor, name: str) -> None:
    assert_close(found, frozen(name), rtol=0.0, atol=1e-12)


def test_agreement() -> None:
    """GAE, TD(lambda), n-step, V-trace with and without lambda, Retrace."""
    agree(estimators.gae(STEPS, GAMMA, LAMDA).advantages, "gae")
    agree(estimators.td_lambda(STEPS, GAMMA, LAMDA).returns, "td_lambda")
    agree(estimators.multistep(STEPS, GAMMA, n_steps=3, bootstrap_method="td").returns, "n_step")
    plain = estimators.vtrace(STEPS, GAMMA)
    agree(plain.returns - STEPS.values, "vtrace_errors")
    agree(plain.advantages, "vtrace_advantages")
    agree(estimators.vtrace(STEPS, GAMMA, LAMDA).returns - STEPS.values, "vtrace_lambda")
    agree(estimators.retrace_q(STEPS.values, STEPS.next_values, STEPS, GAMMA, LAMDA) - STEPS.values, "retrace")
