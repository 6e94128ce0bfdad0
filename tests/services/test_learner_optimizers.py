"""Every update rule against a reference, Lookahead, schedules, and resuming: bit for bit, and of its own kind only."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.learner_toys import tiny_policy
from torch import nn

from midflight.services.learner.optimizers.choose import hidden_matrices
from midflight.services.learner.optimizers.optim import LookaheadSettings, OptimSettings, PolicyOptimizer, lr_factor
from midflight.services.learner.optimizers.optim_choice import critics, optim_settings
from midflight.services.learner.training_config import OptimConfig

START = [[1.0, -2.0], [3.0, 4.0]]
EVERY: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"name": "sgd"},
    "muon": {"name": "muon"},
    "lamb": {"name": "lamb"},
    "adamw with lookahead": {"lookahead": LookaheadSettings(k=3)},
    "muon with lookahead": {"name": "muon", "lookahead": LookaheadSettings(k=3)},
}


def settings(**choices: Any) -> OptimSettings:
    return OptimSettings(**{"lr": 0.1, "weight_decay": 0.0, "warmup_steps": 0, "max_grad_norm": 1e9, **choices})


def gradient(step: int) -> torch.Tensor:
    """Of another direction each step."""
    turn = torch.tensor([[step, 1.0], [1.0, step * step]], dtype=torch.float64)
    return torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64) * turn


def single() -> nn.Linear:
    """One float64 matrix."""
    module = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    module.weight.data.copy_(torch.tensor(START, dtype=torch.float64))
    return module


def moved(steps: int, **choices: Any) -> list[float]:
    """The matrix after so many steps."""
    module = single()
    optimizer = PolicyOptimizer(module, settings(**choices))
    for step in range(1, steps + 1):
        optimizer.advance()
        module.weight.grad = gradient(step)
        optimizer.update()
    return [float(x) for x in module.weight.detach().flatten()]


def layers(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))


def train(module: nn.Module, optimizer: PolicyOptimizer, steps: int) -> None:
    """Steps on inputs that depend on the step number only."""
    for _ in range(steps):
        optimizer.advance()
        ids = torch.randint(7, (8,), generator=torch.Generator().manual_seed(optimizer.step))
        optimizer.zero_grad()
        torch.autograd.backward(module(ids).square().mean())
        optimizer.update()


def lamb(steps: int, lr: float, decay: float, betas: tuple[float, float], eps: float) -> list[float]:
    """Algorithm 2 of You 2020, on one layer."""
    w: NDArray[np.float64] = np.array(START)
    m = v = np.zeros_like(w)
    for t in range(1, steps + 1):
        g = gradient(t).numpy()
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        r = (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps) + decay * w
        w = w - lr * min(10.0, float(np.linalg.norm(w))) / float(np.linalg.norm(r)) * r
    return [float(x) for x in w.flatten()]


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lamb_is_the_papers(decay: float) -> None:
    """Three steps equal ten lines of NumPy, with weight decay inside the ratio."""
    expected = lamb(3, 0.1, decay, (0.9, 0.95), 1e-8)
    assert moved(3, name="lamb", weight_decay=decay) == pytest.approx(expected, rel=1e-12)


def test_lamb_debiases_before_the_ratio() -> None:
    """The first step is lr * |w| long, not ten times that; and three are pytorch_optimizer 4.1.0's with adam_debias."""
    first = np.array(moved(1, name="lamb")) - np.array(START).flatten()
    assert float(np.linalg.norm(first)) == pytest.approx(0.1 * math.sqrt(30), rel=1e-6)
    frozen = [0.17233613305820863, -2.856107447798506, 3.856107447798994, 3.2246911019357416]
    assert moved(3, name="lamb", eps=1e-12) == pytest.approx(frozen, rel=1e-9)


def test_lamb_without_a_length_has_ratio_one() -> None:
    """Weights that are all 0, as a LoRA B at its start, move by the learning rate."""
    module = single()
    module.weight.data.zero_()
    optimizer = PolicyOptimizer(module, settings(name="lamb"))
    optimizer.advance()
    module.weight.grad = gradient(1)
    optimizer.update()
    assert torch.allclose(module.weight.detach().abs(), torch.full((2, 2), 0.1, dtype=torch.float64), rtol=1e-6)


def test_lookahead_is_the_papers() -> None:
    """Five SGD updates with k = 2 equal a plain loop, and pytorch_optimizer 4.1.0's with pullback none."""
    fast = np.array(START)
    slow, momentum = fast.copy(), np.zeros_like(fast)
    for t in range(1, 6):
        momentum = 0.9 * momentum + gradient(t).numpy()
        fast = fast - 0.1 * momentum
        if t % 2 == 0:
            slow = slow + 0.5 * (fast - slow)
            fast = slow.copy()
    found = moved(5, name="sgd", momentum=0.9, lookahead=LookaheadSettings(k=2, alpha=0.5))
    assert found == pytest.approx(fast.flatten().tolist(), rel=1e-12)
    assert found == pytest.approx([-1.24236, -3.72392, 5.58588, 0.30242], rel=1e-12)


def test_sgd_is_torchs() -> None:
    """With momentum, and weight decay added to the gradient."""
    theirs = single()
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.3)
    for step in range(1, 5):
        theirs.weight.grad = gradient(step)
        sgd.step()
    assert moved(4, name="sgd", momentum=0.9, weight_decay=0.3) == theirs.weight.flatten().tolist()


@pytest.mark.parametrize("shape", [(8, 6), (6, 8), (5, 5)])
def test_muon_is_torchs(shape: tuple[int, int]) -> None:
    """Four steps of tall, wide and square matrices, bit for bit, with the learning rate of match_rms_adamw."""
    both = []
    for own in (True, False):
        torch.manual_seed(0)
        module = nn.Linear(shape[1], shape[0], bias=False)
        ours = PolicyOptimizer(module, settings(name="muon", lr=0.02, weight_decay=0.1, momentum=0.9))
        theirs = torch.optim.Muon(
            module.parameters(), lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
        )
        for _ in range(4):
            module.weight.grad = torch.randn(shape)
            if own:
                ours.advance()
                ours.update()
            else:
                theirs.step()  # type: ignore[no-untyped-call]
        both.append(module.weight.detach())
    assert torch.equal(*both)


def test_muon_is_for_hidden_matrices() -> None:
    """Projections are Muon's; embedding (the tied head too), norms, biases and single rows are AdamW's."""
    policy = tiny_policy()
    names: dict[torch.Tensor, str] = {p: name for name, p in policy.named_parameters()}
    chosen = {names[p] for p in hidden_matrices(policy)}
    assert chosen == {name for name in names.values() if "_proj" in name}
    optimizer = PolicyOptimizer(policy, OptimSettings(name="muon"))
    assert [type(rule).__name__ for rule in optimizer.rules] == ["Muon", "AdamW"]
    every = [p for rule in optimizer.rules for group in rule.param_groups for p in group["params"]]
    assert len(every) == len(set(every)) == len(names)
    assert hidden_matrices(nn.Linear(6, 1)) == []


@pytest.mark.parametrize("name", list(EVERY))
def test_each_goes_on_bit_for_bit(name: str) -> None:
    """Four steps and four equal eight, with knobs turned in both; the state of a parameter has its name."""
    choices = {"lr": 1e-2, "weight_decay": 0.1, **EVERY[name]}
    straight, first, second = layers(), layers(), layers(1)
    whole = PolicyOptimizer(straight, settings(**choices))
    half = PolicyOptimizer(first, settings(**choices))
    for module, optimizer in ((straight, whole), (first, half)):
        optimizer.lr, optimizer.weight_decay = 3e-2, 0.2
        train(module, optimizer, 4)
    begun = [p.clone() for p in layers().parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(begun, straight.parameters(), strict=True))
    again = PolicyOptimizer(second, settings(**choices))
    second.load_state_dict(first.state_dict())
    saved = {key: tensor.clone() for key, tensor in half.tensors().items()}
    again.load(saved, half.values())
    again.lr, again.weight_decay = 3e-2, 0.2
    train(straight, whole, 4)
    train(second, again, 4)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))
    assert again.tensors().keys() == saved.keys()
    assert {key.rpartition("/")[0] for key in saved} == {name for name, _ in straight.named_parameters()}


@pytest.mark.parametrize("name", list(EVERY))
@pytest.mark.parametrize("before", [False, True], ids=["in place, then on the host", "on the host, then in place"])
def test_a_step_on_the_host_is_the_same_step(name: str, before: bool) -> None:
    """Bit for bit, knobs, clipping, a checkpoint of either kind, and weights that somebody else has written."""
    choices = {"lr": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.05, **EVERY[name]}
    straight, first, second = layers(), layers(), layers(1)
    whole = PolicyOptimizer(straight, settings(**choices))
    half = PolicyOptimizer(first, settings(**choices), host=before)
    train(straight, whole, 4)
    train(first, half, 4)
    again = PolicyOptimizer(second, settings(**choices), host=not before)
    second.load_state_dict(first.state_dict())
    again.load({key: tensor.clone() for key, tensor in half.tensors().items()}, half.values())
    train(straight, whole, 4)
    train(second, again, 4)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))
    found = again.tensors()
    assert found.keys() == whole.tensors().keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in whole.tensors().items())


def test_on_the_host_nothing_but_the_twins_moves() -> None:
    """The rules hold no parameter of the module; a gradient that is not finite changes neither side."""
    module = layers()
    optimizer = PolicyOptimizer(module, settings(), host=True)
    train(module, optimizer, 2)
    moved = {p for rule in optimizer.rules for group in rule.param_groups for p in group["params"]}
    assert not moved & set(module.parameters())
    assert moved == set(optimizer.names)
    before = {key: tensor.clone() for key, tensor in (module.state_dict() | optimizer.tensors()).items()}
    torch.autograd.backward(module(torch.arange(7)).sum() * math.nan)
    optimizer.update()
    assert all(torch.equal(tensor, before[key]) for key, tensor in (module.state_dict() | optimizer.tensors()).items())
    optimizer.zero_grad()
    assert all(p.grad is None for p in module.parameters())


def test_the_state_of_another_rule_is_refused() -> None:
    """Nothing is changed; a file of before there was a choice is AdamW's."""
    first = PolicyOptimizer(single(), settings(name="sgd"))
    second = PolicyOptimizer(single(), settings(lookahead=LookaheadSettings()))
    said = r"optim.name sgd without optim.lookahead, which is now optim.name adamw with"
    with pytest.raises(ValueError, match=said):
        second.load(first.tensors(), first.values())
    assert second.lr == 0.1
    old = {key: value for key, value in first.values().items() if key not in ("name", "lookahead")}
    PolicyOptimizer(single(), settings()).load({}, old)


def test_every_schedule() -> None:
    """linear falls evenly; wsd stays at the peak until the last decay_share of all steps; both end at min_lr_ratio."""
    linear = settings(schedule="linear", warmup_steps=2, total_steps=12, min_lr_ratio=0.2)
    assert [lr_factor(s, linear) for s in (2, 7, 12, 99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    wsd = settings(schedule="wsd", warmup_steps=2, total_steps=20, decay_share=0.5, min_lr_ratio=0.1)
    assert [lr_factor(s, wsd) for s in (1, 2, 10, 15, 20, 99)] == pytest.approx([1.0, 1.0, 1.0, 0.55, 0.1, 0.1])
    late = settings(schedule="wsd", warmup_steps=15, total_steps=20, decay_share=0.5)
    assert [lr_factor(s, late) for s in (14, 15, 20)] == pytest.approx([1.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="schedule wsd needs total_steps"):
        settings(schedule="wsd", warmup_steps=5, total_steps=5)


def test_the_configuration_reaches_the_rule() -> None:
    """Every key; and a critic's is AdamW without decay or slow weights, under its own learning rate."""
    config = OptimConfig.model_validate(
        {"name": "muon", "momentum": 0.8, "schedule": "wsd", "decay_share": 0.5, "min_lr_ratio": 0.1,
         "lookahead": {"k": 7}}
    )  # fmt: skip
    made = optim_settings(config, 100)
    assert made.lookahead == LookaheadSettings(7, 0.5)
    for key in OptimConfig.model_fields:
        if key not in ("lookahead", "betas"):
            assert getattr(made, key) == getattr(config, key), key
    critic = optim_settings(critics(config, 1e-3), 100)
    assert (critic.name, critic.lr, critic.weight_decay, critic.lookahead) == ("adamw", 1e-3, 0.0, None)
    with pytest.raises(ValueError, match="'adamw', 'sgd', 'muon', 'lamb' or 'adamw_8bit'"):
        OptimConfig.model_validate({"name": "adamv"})
