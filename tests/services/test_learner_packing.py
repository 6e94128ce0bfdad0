"""Packing: every token keeps its own target, mask, log-prob, version and owner, and nothing is padded or lost."""

import random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.learner_toys import random_document

from midflight.services.learner.packing import Document, SequenceTooLong, microbatches, pack
from midflight.services.learner.partition import document_cost, longest_first, partition


def test_every_position_predicts_its_own_next_token() -> None:
    """Target, mask, behaviour log-prob, version and owner of position t are those of token t + 1."""
    rng = random.Random(0)
    docs = [random_document(rng, str(i)) for i in range(6)]
    order = [4, 1, 5]
    packed = pack(docs, order)
    expected = [
        (d.ids[t], t, d.ids[t + 1], d.action_mask[t + 1], d.behaviour_logp[t + 1], d.versions[t + 1], i)
        for i in order
        for d in [docs[i]]
        for t in range(len(d.ids) - 1)
    ]
    columns = [list(c) for c in zip(*expected, strict=True)]
    names = ("ids", "position_ids", "targets", "action_mask", "behaviour_logp", "versions", "sequence")
    for name, column in zip(names, columns, strict=True):
        got = getattr(packed, name)
        assert got.shape == (1, len(column))
        assert torch.equal(got[0], torch.tensor(column, dtype=got.dtype)), name
    ends = torch.tensor([0] + [len(docs[i].ids) - 1 for i in order]).cumsum(0)
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.cu_seqlens.tolist() == ends.tolist()


def test_actions_are_the_masked_positions() -> None:
    """`actions` picks exactly the positions that predict a sampled token, in order."""
    rng = random.Random(1)
    docs = [random_document(rng, str(i)) for i in range(5)]
    packed = pack(docs, range(5))
    actions = packed.actions()
    assert actions.positions.tolist() == [t for t, on in enumerate(packed.action_mask[0].tolist()) if on]
    assert torch.equal(actions.targets, packed.targets[0][actions.positions])
    assert torch.equal(actions.sequence, packed.sequence[0][actions.positions])


def test_single_turn_sample() -> None:
    """`from_completion` marks all of the completion and none of the prompt."""
    doc = Document.from_completion("9", [5, 6], [7, 8, 9], [-0.1, -0.2, -0.3], version=4)
    actions = pack([doc], [0]).actions()
    assert actions.positions.tolist() == [1, 2, 3]
    assert actions.targets.tolist() == [7, 8, 9]
    assert actions.behaviour_logp.tolist() == pytest.approx([-0.1, -0.2, -0.3])
    assert actions.versions.tolist() == [4, 4, 4]


def test_too_long_is_refused_by_name() -> None:
    """A document over the cap raises, names the sample, and nothing is cut."""
    docs = [Document(str(i), list(range(n)), [False] + [True] * (n - 1)) for i, n in enumerate((3, 9, 4))]
    with pytest.raises(SequenceTooLong, match="sample 1 has 8 positions, the limit is 7") as refused:
        microbatches(docs, range(3), cap=7)
    assert refused.value.name == "1"
    assert sum(p.ids.numel() for p in microbatches(docs, range(3), cap=8)) == 2 + 8 + 3


@pytest.mark.parametrize(
    ("ids", "mask", "logp", "complaint"),
    [([1], [True], [], "1 tokens"), ([1, 2], [True], [], "mask"), ([1, 2], [False, True], [-1.0], "behaviour_logp")],
)
def test_malformed_documents_are_refused(ids: list[int], mask: list[bool], logp: list[float], complaint: str) -> None:
    """Lengths that disagree are caught where the document is made, with the sample's name."""
    with pytest.raises(ValueError, match=f"sample x.*{complaint}"):
        Document("x", ids, mask, logp)


@settings(deadline=None, max_examples=60)
@example([50] * 9, 99)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(50, 200))
def test_partition_keeps_everything_under_the_cap(lengths: list[int], cap: int) -> None:
    """Each index appears once, no bin exceeds the cap, and bins are sorted by descending length."""
    parts = partition(lengths, cap)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        sizes = [lengths[i] for i in part]
        assert sum(sizes) <= cap
        assert sizes == sorted(sizes, reverse=True)


def test_lpt_is_balanced() -> None:
    """Longest-first stays within Graham's 4/3 of a lower bound, and within 1 % on lengths like those of RL."""
    rng = random.Random(2)
    for _ in range(30):
        costs = [rng.random() for _ in range(rng.randint(1, 40))]
        bins = rng.randint(1, 8)
        loads = [sum(costs[i] for i in part) for part in longest_first(costs, bins)]
        bound = max(max(costs), sum(costs) / bins, sum(sorted(costs, reverse=True)[bins - 1 : bins + 1]))
        assert max(loads) <= 4 / 3 * bound + 1e-12
    lengths = [min(8192, int(rng.lognormvariate(5.5, 1.0)) + 1) for _ in range(512)]
    costs = [document_cost(n) for n in lengths]
    loads = [sum(costs[i] for i in part) for part in longest_first(costs, 16)]
    assert max(loads) / (sum(loads) / 16) < 1.01
