"""Activations that wait on the host: the same numbers from copies, and no parameter among them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.learner_toys import gradients, random_batch, tiny_lm
from torch.testing._internal.distributed.fake_pg import FakeStore

from midflight.services.learner.group import sharding
from midflight.services.learner.group.mesh import Mesh, Sizes
from midflight.services.learner.network import offload
from midflight.services.learner.network.policy import Policy, recompute_activations
from midflight.services.learner.packs.packing import PackedBatch, microbatches

MODEL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 3}


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What went to the host, each in memory of its own, as from a GPU."""
    found: list[torch.Tensor] = []

    def to_host(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.clone())
        return found[-1]

    monkeypatch.setattr(offload, "to_host", to_host)
    return found


def packed() -> PackedBatch:
    documents = random_batch(0).documents
    (pack,) = microbatches(documents, range(len(documents)), 10_000)
    return pack


def trained(every: int, bf16: bool, away: bool) -> tuple[float, torch.Tensor]:
    """Loss and gradients of one pass."""
    lm = tiny_lm(0, torch.float32, **MODEL)
    if every:
        recompute_activations(lm, every)
    policy = Policy(lm, bf16=bf16, offload=away)
    logp, entropy = policy.score(packed(), packed().actions())
    loss = -(logp + 0.1 * entropy).sum()
    torch.autograd.backward(loss)
    return loss.item(), gradients(policy)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("every", [0, 1, 2], ids=["kept", "recomputed", "every second recomputed"])
def test_the_numbers_are_the_same(every: int, bf16: bool, copied: list[torch.Tensor]) -> None:
    """Bit for bit."""
    loss, grads = trained(every, bf16, away=False)
    assert not copied
    assert trained(every, bf16, away=True)[0] == loss
    assert torch.equal(trained(every, bf16, away=True)[1], grads)
    assert copied


def test_of_a_recomputed_layer_only_its_input_goes(copied: list[torch.Tensor]) -> None:
    """Besides the last norm's."""
    trained(0, False, away=True)
    everything = sum(x.nbytes for x in copied)
    copied.clear()
    trained(1, False, away=True)
    tokens = packed().ids.numel()
    inputs = [x for x in copied if x.shape == (1, tokens, 32)]
    assert len(inputs) >= 3
    assert sum(x.nbytes for x in copied) < everything / 4


def test_on_a_cpu_nothing_moves() -> None:
    """What is packed is the tensor itself."""
    tensor = torch.zeros(1000)
    assert offload.to_host(tensor) is tensor
    assert offload.unpacked((tensor.device, tensor)) is tensor


@pytest.fixture
def group() -> Iterator[None]:
    """Of two ranks, of which the other does not exist."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("cut", [False, True], ids=["one process", "sharded"])
def test_parameters_stay(cut: bool, copied: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that FSDP has gathered; their storage is let go after each layer and filled again."""
    monkeypatch.setattr(sharding, "SMALL", 0)
    lm = tiny_lm(0, torch.float32, **MODEL)
    shapes = {tuple(p.shape) for p in lm.parameters() if p.dim() == 2}
    shapes |= {shape[::-1] for shape in shapes}
    policy = Policy(lm, offload=True)
    if cut:
        Mesh.arranged(torch.device("cpu"), Sizes()).cut(policy, lm)
    logp, _ = policy.score(packed(), packed().actions())
    torch.autograd.backward(logp.sum())
    assert copied
    assert not [x.shape for x in copied if tuple(x.shape) in shapes]
