"""Layers under bfloat16 with float32 masters: what is gathered and reduced in which type, and how near that is."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.group_runs import CASES, HALF, LARGEST_SMALL, by_ranks, found_alone
from support.learner_toys import HOW_CUT, random_batch, tiny_lm
from torch.testing._internal.distributed.fake_pg import FakeStore

from midflight.services.learner.group import sharding
from midflight.services.learner.group.mesh import Mesh, Sizes
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.packs.packing import microbatches

NEAR = 0.04
"""Of metrics, relative where they are above 1: bfloat16 has 8 bits."""
MOVED = 0.002
"""Of weights, absolute; a step is 0.05 long."""
SLICEABLE = ["bf16", "bf16, recomputed layers"]
Sent = dict[str, Counter[torch.dtype]]


@pytest.mark.parametrize(
    ("world", "sizes", "names"),
    [
        pytest.param(2, Sizes(), list(HALF), id="fsdp 2"),
        pytest.param(4, Sizes(tp=2), SLICEABLE, id="fsdp 2 x tp 2"),
        pytest.param(2, Sizes(sp=2), SLICEABLE, id="sp 2"),
    ],
)
def test_ranks_are_near_one_process(world: int, sizes: Sizes, names: list[str]) -> None:
    """Two steps of gathered bfloat16 against two of autocast in one process."""
    found = by_ranks(world, sizes, names)
    for name in names:
        alone = found_alone(CASES[name])
        for own, theirs in zip(alone["reports"], found[name]["reports"], strict=True):
            own, theirs = ({k: v for k, v in one.items() if k not in HOW_CUT} for one in (own, theirs))
            assert theirs == pytest.approx(own, rel=NEAR, abs=NEAR), name
        assert found[name]["weights"] == pytest.approx(alone["weights"], rel=0, abs=MOVED), name


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    """Numbers that this rank, of two of which the other does not exist, gets and gives, by collective and type."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    counted: Sent = {"all_gather": Counter(), "reduce_scatter": Counter()}
    for name, of in (
        ("all_gather_into_tensor", "all_gather"),
        ("all_gather_single", "all_gather"),
        ("reduce_scatter_tensor", "reduce_scatter"),
        ("reduce_scatter_single", "reduce_scatter"),
    ):
        if hasattr(dist, name):
            monkeypatch.setattr(dist, name, _counted(getattr(dist, name), counted[of]))
    yield counted
    dist.destroy_process_group()


def _counted(collective: Any, counts: Counter[torch.dtype]) -> Any:
    def run(*arguments: Any, **named: Any) -> Any:
        tensors = [x for x in (*arguments, *named.values()) if isinstance(x, torch.Tensor)]
        whole = max(tensors, key=torch.Tensor.numel)
        counts[whole.dtype] += whole.numel()
        return collective(*arguments, **named)

    return run


@pytest.mark.parametrize("units", [False, True], ids=["small", "layer by layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_are_gathered_in_half_and_all_is_reduced_in_float32(
    sent: Sent, dtype: torch.dtype, units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is gathered as it is. The masters, and their gradients, are float32 where the model is."""
    monkeypatch.setattr(sharding, "SMALL", 0 if units else LARGEST_SMALL)
    lm = tiny_lm(0, dtype, vocab_size=32)
    policy = Policy(lm, bf16=True)
    layers = sum(p.numel() for p in lm.base_model.layers.parameters())
    rest = sum(p.numel() for p in lm.parameters()) - layers
    Mesh.arranged(torch.device("cpu"), Sizes()).cut(policy, lm, bf16=True)
    documents = random_batch(0).documents
    (pack,) = microbatches(documents, range(len(documents)), 10_000)
    logp, _ = policy.score(pack, pack.actions())
    torch.autograd.backward(logp.sum())
    gathered = sent["all_gather"]
    if dtype == torch.float32:
        assert gathered == {torch.bfloat16: layers * (1 + units), torch.float32: rest}
    else:
        assert set(gathered) == {torch.bfloat16}
    assert sent["reduce_scatter"] == {torch.float32: layers + rest}
    assert {p.dtype for p in policy.parameters()} == {p.grad.dtype for p in policy.parameters() if p.grad is not None}
    assert {p.dtype for p in policy.parameters()} == {dtype}
