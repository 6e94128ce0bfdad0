"""Ranks that share sequences compute what one process computes: attention, log-probs, values, gradients."""

import json
from typing import Any

import pytest
import torch
from support.group_runs import end, started
from support.sequence_runs import ENTRY, attention_errors
from torch import nn

from midflight.services.learner.group.blocks import Block, Side, cuda_attend, cuda_attend_backward
from midflight.services.learner.group.peers import ALONE
from midflight.services.learner.group.ring import Ring
from midflight.services.learner.network.attention import packed_attention

BOUNDS = {
    "float64": 1e-12,
    "float32": 1e-5,
    "bfloat16": 0.1,
    "policy": 1e-11,
    "policy, recomputed": 1e-11,
    "policy in bfloat16": 0.1,
    "a head": 1e-11,
    "a head, detached": 1e-11,
    "a model, recomputed": 1e-11,
}
"""Largest difference allowed: of attention by type, then of a policy, in float64 but for one, without a critic and with
one. In bfloat16 autocast leaves queries, keys and values in different types."""


def by_ranks(world: int, size: int, names: list[str]) -> list[dict[str, Any]]:
    """What each of `world` real processes over gloo says, `size` of which share sequences."""
    ranks = started(world, [str(ENTRY), str(size), *names])
    try:
        said = [rank.communicate(timeout=400) for rank in ranks]
    finally:
        end(ranks)
    assert not any(rank.returncode for rank in ranks), "\n".join(err.decode()[-1500:] for _, err in said)
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_a_ring_of_one_is_attention() -> None:
    """Blocks and their gradients equal the formula."""
    for name in ("float64", "float32"):
        assert max(attention_errors(ALONE, getattr(torch, name)).values()) < BOUNDS[name]


@pytest.mark.parametrize(
    ("size", "names"), [(2, list(BOUNDS)), (4, ["float64", "a model, recomputed"])], ids=["2", "4"]
)
def test_ranks_of_a_sequence_agree_with_one_process(size: int, names: list[str]) -> None:
    """Attention, and what a policy and a critic say, forward and backward, on every rank; in some packs some have no
    action token, or no position."""
    for found in by_ranks(size, size, names):
        for name in names:
            assert max(found[name].values()) < BOUNDS[name], (name, found[name])


@pytest.mark.parametrize("option", ["sliding_window", "softcap", "s_aux"])
def test_a_ring_refuses_what_it_does_not_compute(option: str) -> None:
    """By name, as attention without a ring does."""
    q, k, v = torch.randn(3, 1, 2, 3, 4)
    ring = Ring.over(torch.tensor([3]), ALONE, q.device)
    asked: Any = {option: 2}
    with pytest.raises(ValueError, match=option):
        packed_attention(nn.Module(), q, k, v, scaling=1.0, documents=ring, **asked)


def test_the_cuda_kernels_take_and_give_what_the_ring_does() -> None:
    """Shapes and types by their schema; the kernels themselves are not run here."""
    q = torch.empty(10, 4, 16, dtype=torch.bfloat16, device="meta")
    kv = torch.empty(2, 10, 2, 16, dtype=torch.bfloat16, device="meta")
    side = Side(None, torch.empty(3, dtype=torch.int32, device="meta"), [4, 6])
    block = Block(side, side, causal=True)
    out, lse = cuda_attend(block, q, kv, 0.3)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    assert (lse.shape, lse.dtype) == (q.shape[:2], torch.float32)
    found = cuda_attend_backward(block, out, q, kv, out, lse, 0.3)
    assert [x.shape for x in found] == [q.shape, kv.shape]
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        cuda_attend(block, q.float(), kv.float(), 0.3)
