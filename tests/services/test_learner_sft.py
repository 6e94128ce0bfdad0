"""The supervised step: cross-entropy of the assistant's tokens, however it is cut."""

import random

import pytest
import torch
import torch.nn.functional as F
from support.learner_toys import gradients, random_document, tiny_lm, tiny_policy

from midflight.services.learner.objectives.sft import sft_update
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.packs.packing import Document

STILL = OptimSettings(lr=0.0, weight_decay=0.0, max_grad_norm=1e9)


def documents(seed: int) -> list[Document]:
    rng = random.Random(seed)
    drawn = [random_document(rng, str(i)) for i in range(9)]
    return [Document(d.name, d.ids, d.action_mask) for d in drawn]


@pytest.mark.parametrize("cap", [1000, 25, 11])
def test_equals_cross_entropy_for_any_split(cap: int) -> None:
    """Loss and gradient equal torch's cross-entropy, summed and divided by the marked tokens: within 1e-10."""
    docs, policy, lm = documents(0), tiny_policy(1), tiny_lm(1)
    total, marked = torch.zeros((), dtype=torch.float64), 0
    for d in docs:
        labels = torch.tensor([i if on else -100 for i, on in zip(d.ids, d.action_mask, strict=True)])
        logits = lm(input_ids=torch.tensor([d.ids]), use_cache=False).logits[0, :-1]
        total = total + F.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
        marked += sum(d.action_mask)
    torch.autograd.backward(total / marked)
    metrics = sft_update(policy, PolicyOptimizer(policy, STILL), docs, cap).metrics
    assert metrics["loss"] == pytest.approx(total.item() / marked, abs=1e-10)
    assert metrics["action_tokens"] == marked
    assert (gradients(policy) - gradients(lm)).abs().max() < 1e-10


def test_it_learns_by_heart() -> None:
    """Sixty steps on four sequences bring the loss from about 4 nats below 0.1."""
    docs, policy = documents(1)[:4], tiny_policy(2, torch.float32)
    optimizer = PolicyOptimizer(policy, OptimSettings(lr=1e-2, weight_decay=0.0))
    losses = [sft_update(policy, optimizer, docs, 1000).metrics["loss"] for _ in range(60)]
    assert losses[0] > 2
    assert losses[-1] < 0.1


def test_nothing_to_learn_is_an_error() -> None:
    """A batch without a marked token raises instead of dividing by zero."""
    policy = tiny_policy()
    with pytest.raises(ValueError, match="marked"):
        sft_update(policy, PolicyOptimizer(policy, STILL), [Document("0", [1, 2], [False, False])], 100)
