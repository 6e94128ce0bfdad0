"""Packing: every token keeps its own target, mask, log-prob, version and owner, and nothing is padded or lost."""

import random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.learner_toys import random_document, tiny_lm

from midflight.services.learner.packs.packing import Document, SequenceTooLong, balance, microbatches, pack
from midflight.services.learner.packs.partition import (
    differencing,
    document_cost,
    imbalance,
    longest_first,
    partition,
    quadratic_length,
)


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
@example([50] * 9, 99, 1)
@example([50, 50, 1], 50, 4)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(50, 200), st.integers(1, 5))
def test_partition_keeps_everything_under_the_cap(lengths: list[int], cap: int, ranks: int) -> None:
    """Each index appears once, no bin exceeds the cap, rounds are whole, bins are sorted, and again the same come."""
    parts = partition(lengths, cap, ranks)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    assert all(parts)
    assert len(parts) % ranks == 0 or len(parts) == len(lengths)
    for part in parts:
        sizes = [lengths[i] for i in part]
        assert sum(sizes) <= cap
        assert sizes == sorted(sizes, reverse=True)
    loads = [sum(document_cost(lengths[i]) for i in part) for part in parts]
    assert loads == sorted(loads, reverse=True)
    assert partition(lengths, cap, ranks) == parts


def rl_like(rng: random.Random, count: int, longest: int = 8192) -> list[int]:
    return [min(longest, int(rng.lognormvariate(5.5, 1.0)) + 1) for _ in range(count)]


def longest_first_alone(lengths: list[int], cap: int, ranks: int) -> list[list[int]]:
    """The fewest bins of the simple method, as they come."""
    bins = -(-sum(lengths) // (cap * ranks)) * ranks
    while True:
        split = longest_first([document_cost(n) for n in lengths], bins)
        if all(sum(lengths[i] for i in part) <= cap for part in split):
            return [part for part in split if part]
        bins += ranks


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("cap", [8192, 16384])
def test_rounds_of_rl_like_lengths_are_balanced(ranks: int, cap: int) -> None:
    """Never more bins than longest-first needs, at equal numbers never less balanced, and mostly within 1 %."""
    rng = random.Random(7)
    found = []
    for _ in range(11):
        lengths = rl_like(rng, 256)

        def work(parts: list[list[int]], lengths: list[int] = lengths) -> float:
            return imbalance([sum(document_cost(lengths[i]) for i in part) for part in parts], ranks)

        ours, simple = partition(lengths, cap, ranks), longest_first_alone(lengths, cap, ranks)
        assert len(ours) <= len(simple)
        if len(ours) == len(simple):
            assert work(ours) <= work(simple) + 1e-12
        found.append(work(ours))
    assert sorted(found)[5] < 1.01


def test_differencing_beats_longest_first() -> None:
    """The example of Karmarkar and Karp's rule in books, and a mean over random numbers."""
    costs = [8.0, 7.0, 6.0, 5.0, 4.0]

    def spread(parts: list[list[int]], costs: list[float]) -> float:
        loads = [sum(costs[i] for i in part) for part in parts]
        return max(loads) - min(loads)

    assert spread(differencing(costs, 2), costs) == 2
    assert spread(longest_first(costs, 2), costs) == 4
    rng, sums = random.Random(5), [0.0, 0.0]
    for _ in range(50):
        costs = [rng.random() for _ in range(64)]
        for at, method in enumerate((differencing, longest_first)):
            parts = method(costs, 8)
            assert sorted(i for part in parts for i in part) == list(range(64))
            assert len(parts) == 8
            sums[at] += spread(parts, costs)
    assert sums[0] < sums[1] / 2
    assert differencing([], 3) == [[], [], []]
    assert sorted(map(len, differencing([1.0], 3))) == [0, 0, 1]


def test_work_is_that_of_the_models_shape() -> None:
    """A document of the quadratic length costs twice what is linear in it; a table that is looked up costs nothing."""
    tied, apart = (tiny_lm(0, torch.float32, tie_word_embeddings=tie) for tie in (True, False))
    layers = sum(p.numel() for layer in tied.model.layers for p in layer.parameters() if p.dim() > 1)
    length = (layers + 29 * 16) / (2 * 4 * 8)
    assert quadratic_length(tied) == quadratic_length(apart) == length
    assert document_cost(100, 100.0) == 200


def test_balance_says_what_is_lost() -> None:
    """Two ranks with 6 and 2 positions wait as long as for two times 6; an unfilled cap is told."""
    docs = [Document(str(i), list(range(n)), [False] + [True] * (n - 1)) for i, n in enumerate((7, 3))]
    packs = microbatches(docs, range(2), 8, ranks=2, quadratic=1e12)
    assert balance([packs], 8, 2, 1e12) == {"pack/imbalance": pytest.approx(1.5), "pack/fill": pytest.approx(0.5)}
    assert balance([packs], 8, 1, 1e12)["pack/imbalance"] == pytest.approx(1)
    assert imbalance([4.0, 4.0, 2.0], 2) == pytest.approx(1.2)


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
