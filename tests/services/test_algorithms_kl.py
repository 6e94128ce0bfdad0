"""KL estimators: values and gradients by enumerating every action of small distributions."""

import pytest
import torch
from torch import Tensor

from midflight.services.algorithms.kl import K3_LIMIT, KlEstimator, kl_estimate

KINDS: list[KlEstimator] = ["k1", "k2", "k3"]


def policies(seed: int) -> tuple[Tensor, Tensor]:
    """Logits of pi and log-probs of ref over 7 actions."""
    g = torch.Generator().manual_seed(seed)
    pi, ref = torch.randn(2, 7, generator=g, dtype=torch.float64)
    return pi.requires_grad_(), ref.log_softmax(0)


def expected_gradient(kind: KlEstimator, logits: Tensor, ref: Tensor) -> Tensor:
    """E_{a ~ pi}[grad k(a)]: the distribution itself is not differentiated, as in sampling."""
    logp = logits.log_softmax(0)
    weights = logp.exp().detach()
    return torch.autograd.grad((weights * kl_estimate(logp, ref, kind)).sum(), logits)[0]


@pytest.mark.parametrize("seed", range(5))
def test_gradients_by_enumeration(seed: int) -> None:
    """k2 has the gradient of KL(pi||ref), k3 that of KL(ref||pi), k1 none; as a reward k1 gives KL(pi||ref)'s."""
    logits, ref = policies(seed)
    logp = logits.log_softmax(0)
    (reverse,) = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), logits, retain_graph=True)
    (forward,) = torch.autograd.grad((ref.exp() * (ref - logp)).sum(), logits, retain_graph=True)
    score = (logp.exp().detach() * kl_estimate(logp, ref, "k1").detach() * logp).sum()
    assert torch.allclose(torch.autograd.grad(score, logits)[0], reverse, atol=1e-14)
    assert torch.allclose(expected_gradient("k2", logits, ref), reverse, atol=1e-14)
    assert torch.allclose(expected_gradient("k3", logits, ref), forward, atol=1e-14)
    assert expected_gradient("k1", logits, ref).abs().max() < 1e-15


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_values_by_enumeration(kind: KlEstimator) -> None:
    """E_pi[k1] and E_pi[k3] are KL(pi||ref); k2 and k3 are never negative."""
    logits, ref = policies(9)
    logp = logits.log_softmax(0)
    kl = (logp.exp() * (logp - ref)).sum()
    assert (logp.exp() * kl_estimate(logp, ref, kind)).sum().item() == pytest.approx(kl.item(), abs=1e-14)
    assert bool((kl_estimate(logp, ref, "k2") >= 0).all() & (kl_estimate(logp, ref, "k3") >= 0).all())


def test_off_policy_weight_restores_the_k2_gradient() -> None:
    """Sampling from mu, sg(pi / mu) * grad k2 is still the gradient of KL(pi||ref); without the weight it is not."""
    logits, ref = policies(4)
    mu = torch.randn(7, generator=torch.Generator().manual_seed(8), dtype=torch.float64).log_softmax(0)
    logp = logits.log_softmax(0)
    (reverse,) = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), logits, retain_graph=True)
    k2 = kl_estimate(logp, ref, "k2")
    (weighted,) = torch.autograd.grad((mu.exp() * (logp - mu).exp().detach() * k2).sum(), logits, retain_graph=True)
    (plain,) = torch.autograd.grad((mu.exp() * k2).sum(), logits)
    assert torch.allclose(weighted, reverse, atol=1e-14)
    assert (plain - reverse).abs().max() > 0.05


def test_small_differences_keep_their_digits() -> None:
    """k3 of log-probs 1e-4 apart in float32 is accurate to 0.1 % where exp(-x) - 1 + x has no digit left."""
    x = torch.tensor([1e-4])
    assert kl_estimate(x, torch.zeros(1), "k3").item() == pytest.approx(5e-9, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_limits_and_mask(kind: KlEstimator) -> None:
    """Far apart: finite and limited. Masked NaN: value 0, gradient 0."""
    ref = torch.tensor([0.0, 0.0, float("nan")])
    logp = torch.tensor([-1e6, 1e6, float("nan")], requires_grad=True)
    k = kl_estimate(logp, ref, kind, torch.tensor([True, True, False]))
    (grad,) = torch.autograd.grad(k.sum(), logp)
    limit = {"k1": 20.0, "k2": 200.0, "k3": K3_LIMIT}[kind]
    assert k.detach().abs().max() <= limit
    assert k[2] == 0.0
    assert bool(grad.isfinite().all())
    assert grad[2] == 0.0
