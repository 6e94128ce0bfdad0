"""Packed attention equals running every document alone, and documents cannot see or poison each other."""

import random
from typing import Any

import pytest
import torch
from support.learner_toys import VOCAB, gradients, tiny_lm
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from midflight.services.learner.network.attention import Documents, packed_attention
from midflight.services.learner.network.attention_cuda import varlen_attention
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.packs.packing import Document, microbatches


def slow_attention(leaves: list[Tensor], lengths: list[int], scaling: float = 0.4) -> Tensor:
    """One query of one head at a time, over its own document's past; q [T, H, D] -> [T, H, D]."""
    q, k, v = leaves
    out = torch.zeros_like(q)
    shared, start = q.shape[1] // k.shape[1], 0
    for n in lengths:
        for t in range(start, start + n):
            for h in range(q.shape[1]):
                keys, values = k[start : t + 1, h // shared], v[start : t + 1, h // shared]
                out[t, h] = (keys @ q[t, h] * scaling).softmax(0) @ values
        start += n
    return out


def run(leaves: list[Tensor], lengths: list[int], scaling: float = 0.4) -> Tensor:
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    as_model = (x.transpose(0, 1)[None] for x in leaves)
    module = torch.nn.Module()
    return packed_attention(module, *as_model, scaling=scaling, documents=Documents.from_cu_seqlens(cu))[0][0]


@pytest.mark.parametrize(
    "lengths",
    [[1], [5, 5, 5], [9, 8, 7, 6, 2, 1, 1], [1, 6, 1, 6], [70, 66, 20, 3], [80], [65, 64, 63]],
    ids=str,
)
def test_equals_the_double_loop(lengths: list[int]) -> None:
    """Every bucket shape, below and above the length where the fused kernel takes over: output within 1e-12."""
    g = torch.Generator().manual_seed(sum(lengths))
    leaves = [torch.randn(sum(lengths), h, 4, generator=g, dtype=torch.float64) for h in (4, 2, 2)]
    assert (run(leaves, lengths) - slow_attention(leaves, lengths)).abs().max() < 1e-12


def test_gradients_equal_the_double_loop() -> None:
    """Padding inside attention adds nothing to any gradient: within 1e-12."""
    lengths = [7, 5, 5, 2, 66]
    g = torch.Generator().manual_seed(5)
    inputs = [torch.randn(sum(lengths), h, 4, generator=g, dtype=torch.float64) for h in (4, 2, 2)]
    probe = torch.randn(sum(lengths), 4, 4, generator=g, dtype=torch.float64)
    grads = []
    for attend in (run, slow_attention):
        leaves = [x.clone().requires_grad_() for x in inputs]
        grads.append(torch.autograd.grad((attend(leaves, lengths) * probe).sum(), leaves))
    for ours, slow in zip(*grads, strict=True):
        assert (ours - slow).abs().max() < 1e-12


@pytest.mark.parametrize("lengths", [[6, 5, 4], [80, 70]], ids=str)
def test_nan_stays_in_its_document(lengths: list[int]) -> None:
    """A document full of NaN leaves its neighbours' outputs and gradients bit for bit unchanged."""
    g = torch.Generator().manual_seed(1)
    clean = [torch.randn(sum(lengths), h, 4, generator=g) for h in (4, 2, 2)]
    first = lengths[0]
    results = []
    for poison in (False, True):
        leaves = [x.clone() for x in clean]
        for x in leaves:
            x[:first] = float("nan") if poison else x[:first]
            x.requires_grad_()
        out = run(leaves, lengths)[first:]
        results.append([out, *(x[first:] for x in torch.autograd.grad(out.sum(), leaves))])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_model_on_a_pack_equals_documents_alone() -> None:
    """A whole Qwen3: log-probs and gradients of a pack equal transformers' own forward on each document."""
    rng = random.Random(3)
    docs = [
        Document(str(n), [rng.randrange(VOCAB) for _ in range(n)], [False] + [True] * (n - 1))
        for n in (12, 3, 70, 9, 2)
    ]
    packed, alone = Policy(tiny_lm()), tiny_lm()
    total = torch.zeros((), dtype=torch.float64)
    for doc in docs:
        logits = alone(input_ids=torch.tensor([doc.ids[:-1]]), use_cache=False).logits[0]
        total = total + logits.log_softmax(-1).gather(1, torch.tensor(doc.ids[1:])[:, None]).sum()
    torch.autograd.backward(total)
    (pack,) = microbatches(docs, range(len(docs)), cap=200)
    logp, _ = packed.score(pack, pack.actions())
    torch.autograd.backward(logp.sum())
    assert abs(logp.sum() - total) < 1e-10
    assert (gradients(packed) - gradients(alone)).abs().max() < 1e-11


@pytest.mark.parametrize("longest", [30, 90])
def test_bfloat16_body_stays_close(longest: int) -> None:
    """Under bf16 autocast log-probs are float32 and within 0.1 nats of the float32 body, gradients within 5 %."""
    rng = random.Random(4)
    docs = [
        Document(str(n), [rng.randrange(VOCAB) for _ in range(n)], [False] + [True] * (n - 1))
        for n in (longest, longest - 3, 12, 5)
    ]
    (pack,) = microbatches(docs, range(4), cap=500)
    results = []
    for bf16 in (False, True):
        policy = Policy(tiny_lm(2, torch.float32), bf16=bf16)
        logp, _ = policy.score(pack, pack.actions())
        torch.autograd.backward(logp.mean())
        results.append((logp.detach(), gradients(policy)))
    (exact, g0), (rounded, g1) = results
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.1
    assert (g0 - g1).norm() < 0.05 * g0.norm()


def test_precision_is_chosen_by_size() -> None:
    """A tiny model on a CPU keeps float32 when asked to choose."""
    assert not Policy(tiny_lm(), bf16=None).bf16


def test_masks_and_variants_are_refused() -> None:
    """An attention mask, dropout, or a sliding window raises instead of being ignored."""
    x = torch.zeros(1, 2, 3, 4)
    documents = Documents.from_cu_seqlens(torch.tensor([0, 3], dtype=torch.int32))
    module = torch.nn.Module()
    with pytest.raises(ValueError, match="attention_mask"):
        packed_attention(module, x, x, x, torch.ones(1, 3), scaling=1.0, documents=documents)
    with pytest.raises(ValueError, match="dropout"):
        packed_attention(module, x, x, x, scaling=1.0, documents=documents, dropout=0.1)
    with pytest.raises(ValueError, match="sliding_window"):
        packed_attention(module, x, x, x, scaling=1.0, documents=documents, sliding_window=8)


def test_cuda_kernels_leave_float32_to_plain_torch() -> None:
    """The CUDA entry declines float32, so the bucketed path computes it."""
    x = torch.zeros(3, 2, 4)
    assert varlen_attention(x, x, x, torch.tensor([0, 3], dtype=torch.int32), 3, 1.0) is None


class Called(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names of the operators that were called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note it, and do it."""
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("longest", [70, 512])
def test_under_autocast_narrow_tensors_reach_the_kernels(longest: int) -> None:
    """Though a model's norms widen queries and keys: for the product on a CPU, and for CUDA's kernel, which takes no
    other; what the product keeps for its backward pass is narrow too."""
    lengths = [longest, longest]
    documents = Documents.from_cu_seqlens(torch.tensor([0, *lengths]).cumsum(0).int())
    q, k = (torch.randn(1, heads, 2 * longest, 16, requires_grad=True) for heads in (4, 2))
    v = torch.randn(1, 2, 2 * longest, 16, dtype=torch.bfloat16)
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with (
        Called() as called,
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
    ):
        out, _ = packed_attention(torch.nn.Module(), q, k, v, scaling=0.25, documents=documents)
    assert out.dtype == torch.bfloat16
    assert not any("attention" in name for name in called.names)
    assert all(x.dtype == torch.bfloat16 for x in kept if x.is_floating_point() and x.numel() >= 2 * longest * longest)
    assert any(x.numel() >= 2 * longest * longest for x in kept)
