"""A resumed learner continues bit for bit, from files that hold no code and that others can read."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file
from support.checkpoints import save_learner
from support.learner_toys import random_batch, tiny_lm, tiny_policy

from midflight.services.learner.checkpoints import rng
from midflight.services.learner.checkpoints.checkpoint import CheckpointError, verify
from midflight.services.learner.checkpoints.snapshot import load_learner, load_model_tensors, model_tensors
from midflight.services.learner.checkpoints.tensorfile import DTYPES, tensor_chunks
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.settings import RlSettings
from midflight.services.learner.step import rl_update

SETTINGS = RlSettings(loss="decoupled_ppo", update_per_rollout=2, shuffle=True, entropy_coef=0.01)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """torch refuses any operation that is not reproducible."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def learner(seed: int) -> tuple[Policy, PolicyOptimizer]:
    policy = tiny_policy(seed, torch.float32)
    schedule = OptimSettings(lr=1e-2, warmup_steps=3, schedule="cosine", total_steps=20)
    return policy, PolicyOptimizer(policy, schedule)


def train(policy: Policy, optimizer: PolicyOptimizer, steps: int) -> list[float]:
    """Steps whose data depend on every global generator, so that a forgotten state shows."""
    losses = []
    for _ in range(steps):
        seed = int(torch.randint(1 << 20, ())) ^ random.getrandbits(20) ^ int(np.random.randint(1 << 20))
        losses.append(rl_update(policy, None, optimizer, random_batch(seed), SETTINGS).metrics["loss"])
    return losses


@pytest.mark.usefixtures("deterministic")
def test_n_plus_n_equals_two_n_bitwise(tmp_path: Path) -> None:
    """4 steps, checkpoint, new objects, 4 steps: the weights, moments and losses of 8 steps, bit for bit."""
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)
    start = rng.capture()
    policy, optimizer = learner(0)
    rng.restore(start)
    straight = train(policy, optimizer, 8)
    expected = {k: v.clone() for k, v in (model_tensors(policy) | optimizer.tensors()).items()}

    policy, optimizer = learner(0)
    rng.restore(start)
    first = train(policy, optimizer, 4)
    optimizer.weight_decay = 0.01
    save_learner(tmp_path, 4, policy, optimizer, {"ledger": 17})
    policy, optimizer = learner(5)
    torch.rand(9)
    manifest = load_learner(tmp_path / "step-00000004", policy, optimizer)
    assert (manifest.step, manifest.extra) == (4, {"ledger": 17})
    assert first + train(policy, optimizer, 4) == straight
    now = model_tensors(policy) | optimizer.tensors()
    assert now.keys() == expected.keys()
    assert all(torch.equal(now[k], expected[k]) for k in expected)


def test_random_states_round_trip_through_json() -> None:
    """torch, random and NumPy draw the same numbers again, also after an odd number of Gaussians."""
    random.gauss(0, 1)
    np.random.randn()
    state = rng.capture()
    draws = [(torch.rand(3).tolist(), random.gauss(0, 1), float(np.random.randn())) for _ in range(2)]
    rng.restore(state)
    assert draws == [(torch.rand(3).tolist(), random.gauss(0, 1), float(np.random.randn())) for _ in range(2)]


def test_tied_weights_are_stored_once_and_read_by_the_library(tmp_path: Path) -> None:
    """The file is plain safetensors; the tied output layer is not in it twice, and stays tied after loading."""
    policy, optimizer = learner(0)
    save_learner(tmp_path, 1, policy, optimizer, {})
    stored = load_file(tmp_path / "step-00000001" / "model.safetensors")
    assert sorted(stored) == sorted(name for name, _ in policy.named_parameters())
    other, fresh = learner(1)
    load_model_tensors(tmp_path / "step-00000001", other)
    load_learner(tmp_path / "step-00000001", other, fresh)
    assert other.lm.lm_head.weight is other.lm.model.embed_tokens.weight
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), other.parameters(), strict=True))


def test_every_dtype_and_shape_is_streamed(tmp_path: Path) -> None:
    """Scalars, empty and non-contiguous tensors of every dtype come back equal through the library."""
    tensors = {f"{name}/{s}": torch.ones(s).to(t) for t, name in DTYPES.items() for s in ((), (0,), (3, 5))}
    tensors["strided"] = torch.arange(12).view(3, 4).t()
    back = load(b"".join(bytes(chunk) for chunk in tensor_chunks(tensors)))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_another_models_checkpoint_changes_nothing(tmp_path: Path) -> None:
    """Loading a checkpoint of another shape raises, and the model keeps its weights."""
    wide = Policy(tiny_lm(0, torch.float32, intermediate_size=32))
    save_learner(tmp_path, 1, wide, PolicyOptimizer(wide, OptimSettings()), {})
    policy, optimizer = learner(1)
    before = [p.clone() for p in policy.parameters()]
    with pytest.raises(CheckpointError, match="another model"):
        load_learner(tmp_path / "step-00000001", policy, optimizer)
    with pytest.raises(CheckpointError, match="another model"):
        load_model_tensors(tmp_path / "step-00000001", policy)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_digest_is_a_function_of_the_content(tmp_path: Path) -> None:
    """Two saves of one state have one digest; one more step changes it."""
    torch.manual_seed(0)
    policy, optimizer = learner(0)
    state = rng.capture()
    first = save_learner(tmp_path / "a", 1, policy, optimizer, {"x": 1})
    assert save_learner(tmp_path / "b", 1, policy, optimizer, {"x": 1}).digest == first.digest
    train(policy, optimizer, 1)
    rng.restore(state)
    assert save_learner(tmp_path / "c", 1, policy, optimizer, {"x": 1}).digest != first.digest
    assert verify(tmp_path / "a" / "step-00000001").digest == first.digest
