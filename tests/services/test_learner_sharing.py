"""Shared prompts: the same log-probs, entropies and gradients as the whole pack, with fewer positions."""

import random
from dataclasses import replace

import pytest
import torch
from support.learner_toys import VOCAB, tiny_policy

from midflight.services.learner.network.policy import Policy
from midflight.services.learner.packs.packing import Document, pack


def groups(seed: int, count: int, size: int, longest: int = 9) -> list[Document]:
    """`count` prompts with `size` completions each; some completions of one token."""
    rng = random.Random(seed)
    out = []
    for group in range(count):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(3, longest))]
        for member in range(size):
            said = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 4))]
            name = f"{group}/{member}"
            out.append(Document.from_completion(name, prompt, said, [-1.0] * len(said), 0))
    return out


def gradients(policy: Policy, documents: list[Document], sharing: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Log-probs and entropies, and the gradient of their weighted sum."""
    batch = pack(documents, range(len(documents)))
    assert batch.shared is not None
    batch = batch if sharing else replace(batch, shared=None)
    logp, entropy = policy.score(batch, batch.actions(), 0.7)
    policy.zero_grad()
    weights = torch.linspace(-1, 1, logp.numel(), dtype=logp.dtype)
    ((logp + 0.3 * entropy) * weights).sum().backward()  # type: ignore[no-untyped-call]
    return torch.stack([logp, entropy]).detach(), [p.grad.clone() for p in policy.parameters() if p.grad is not None]


@pytest.mark.parametrize(("count", "size", "longest"), [(1, 2, 9), (4, 3, 9), (2, 8, 90)])
def test_equal_to_the_whole_pack(count: int, size: int, longest: int) -> None:
    """Values and every gradient agree to the rounding of the float32 head, for short and long documents."""
    documents = groups(count * size, count, size, longest)
    policy = tiny_policy()
    whole, whole_gradients = gradients(policy, documents, sharing=False)
    shared, shared_gradients = gradients(policy, documents, sharing=True)
    torch.testing.assert_close(shared, whole, rtol=0, atol=2e-6)
    assert len(shared_gradients) == len(whole_gradients) > 0
    for ours, theirs in zip(shared_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def test_positions_saved() -> None:
    """Each distinct prompt is kept once, wherever its documents lie, and everything else once a document."""
    documents = groups(1, 3, 4)
    mixed = documents[::2] + documents[1::2]
    shared = pack(mixed, range(len(mixed))).shared
    assert shared is not None
    prompts = {tuple(d.ids[: d.prompt]) for d in documents}
    assert shared.keep.numel() == sum(map(len, prompts)) + sum(d.positions - d.prompt for d in documents)
    ids = pack(mixed, range(len(mixed))).ids[0]
    assert torch.equal(ids[shared.keep][shared.expand], ids)


def test_nothing_to_share() -> None:
    """Distinct prompts are left as they are."""
    documents = groups(2, 6, 1)
    assert pack(documents, range(6)).shared is None
