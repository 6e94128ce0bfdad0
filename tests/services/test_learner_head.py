"""The chunked head: log-softmax and entropy of the full logits, without ever holding the full logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from midflight.services.learner.network.head import chunked_logprob


def full(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Reference: materialised logits."""
    logp = ((hidden @ weight.t()) / temperature).log_softmax(-1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def inputs(dtype: torch.dtype, rows: int = 23, vocab: int = 57) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 16, generator=g, dtype=dtype)
    weight = torch.randn(vocab, 16, generator=g, dtype=dtype) / 4
    return hidden, weight, torch.randint(0, vocab, (rows,), generator=g)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.3])
@pytest.mark.parametrize("rows", [1, 5, 23, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_values_and_gradients(dtype: torch.dtype, tolerance: float, rows: int, temperature: float) -> None:
    """Both outputs and both gradients equal log_softmax's, for any chunk."""
    hidden, weight, targets = inputs(dtype)
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 23, generator=g, dtype=dtype) / 23
    results = []
    for head in (lambda h, w: chunked_logprob(h, w, targets, temperature, rows * 57), None):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logp, entropy = head(h, w) if head else full(h, w, targets, temperature)
        results.append((logp, entropy, *torch.autograd.grad((a * logp + b * entropy).sum(), (h, w))))
    for ours, reference in zip(*results, strict=True):
        assert (ours - reference).abs().max() < tolerance


def test_temperature_divides_logits_not_logprobs() -> None:
    """exp(log-prob) over all targets sums to one at any temperature."""
    hidden, weight, _ = inputs(torch.float64)
    row = hidden[:1].expand(57, -1)
    logp, _ = chunked_logprob(row, weight, torch.arange(57), 0.6)
    assert logp.exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_bfloat16_hidden_gets_float32_logits() -> None:
    """With bf16 inputs, also under autocast, the outputs are float32 and equal the float32 computation on them."""
    hidden, weight, targets = inputs(torch.float32)
    hidden = hidden.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp, _ = chunked_logprob(hidden, weight, targets)
    torch.autograd.backward(logp.sum())
    assert logp.dtype == torch.float32
    assert (logp - full(hidden.float(), weight, targets, 1.0)[0]).abs().max() < 1e-6
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the largest tensor any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_full_logits_never_exist() -> None:
    """Forward and backward over 400 x 500 logits hold no tensor larger than the chunk or the weights."""
    g = torch.Generator().manual_seed(2)
    hidden = torch.randn(400, 8, generator=g).requires_grad_()
    weight = torch.randn(500, 8, generator=g).requires_grad_()
    mode: Callable[[], Largest] = Largest
    with mode() as seen:
        logp, entropy = chunked_logprob(hidden, weight, torch.zeros(400, dtype=torch.long), elements=10_000)
        torch.autograd.backward(logp.sum() + entropy.sum())
    assert 0 < seen.numel <= 10_000


def test_no_scored_token() -> None:
    """An empty selection gives empty outputs and zero gradients."""
    hidden, weight, _ = inputs(torch.float32)
    weight.requires_grad_()
    logp, entropy = chunked_logprob(hidden[:0], weight, torch.zeros(0, dtype=torch.long))
    torch.autograd.backward(logp.sum() + entropy.sum())
    assert logp.shape == entropy.shape == (0,)
    assert weight.grad is not None
    assert not weight.grad.any()
