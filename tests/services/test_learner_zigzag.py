"""How a pack is divided over the ranks of a sequence: every position has one owner, and work is even."""

import random
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from midflight.services.learner.group.peers import Place
from midflight.services.learner.group.zigzag import Cut, chunks, cut, halves, owners

SEGMENTS = st.lists(st.integers(1, 40), min_size=1, max_size=6)
RANKS = st.sampled_from([2, 3, 4, 8])


def parts(lengths: list[int], ranks: int, actions: torch.Tensor) -> list[Cut]:
    """Of every rank."""
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    made = [cut(ends, actions, Place(rank, ranks)) for rank in range(ranks)]
    return [part for part in made if part is not None]


@given(SEGMENTS, RANKS)
def test_every_position_has_one_owner(lengths: list[int], ranks: int) -> None:
    """All ranks' positions make up the pack, ascending on each; who has none computes the first, for nothing."""
    owner = owners(torch.tensor(lengths), ranks)
    made = parts(lengths, ranks, torch.arange(0))
    own = [part.positions.tolist() for part in made if (owner == part.sp.rank).any()]
    assert sorted(chain(*own)) == list(range(sum(lengths)))
    assert all(one == sorted(one) for one in own)
    assert all(part.positions.tolist() == [0] for part in made if not (owner == part.sp.rank).any())


@given(SEGMENTS, RANKS)
def test_chunks_are_contiguous_and_even(lengths: list[int], ranks: int) -> None:
    """Rank r owns chunks r and 2R - 1 - r of each segment; chunks of a segment differ by at most one position."""
    sizes, owned = chunks(torch.tensor(lengths), ranks), halves(torch.tensor(lengths), ranks)
    expected: list[int] = []
    for segment, (length, row) in enumerate(zip(lengths, sizes.tolist(), strict=True)):
        assert sum(row) == length
        assert max(row) - min(row) <= 1
        for chunk, size in enumerate(row):
            rank = min(chunk, 2 * ranks - 1 - chunk)
            assert owned[rank, segment, int(chunk >= ranks)] == size
            expected += [rank] * size
    assert owners(torch.tensor(lengths), ranks).tolist() == expected


@given(SEGMENTS, RANKS, st.randoms(use_true_random=False))
def test_columns_come_together_in_order(lengths: list[int], ranks: int, rng: random.Random) -> None:
    """Each action token is one rank's; rows find it among the rank's positions, and order finds it in what all gave."""
    every = [at for at in range(sum(lengths)) if rng.random() < 0.5]
    actions = torch.tensor(every, dtype=torch.int64)
    made = parts(lengths, ranks, actions)
    for part in made:
        assert torch.equal(part.positions[part.rows], actions[part.actions])
        assert part.counts == [len(one.actions) for one in made]
    assert torch.equal(torch.cat([actions[part.actions] for part in made])[made[0].order], actions)
    assert all(torch.equal(part.order, made[0].order) for part in made)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_causal_work_is_even(ranks: int) -> None:
    """Pairs of a query and a key it attends to, by rank: within 1 % of each other, where contiguous parts are 1 to
    2R - 1."""
    length = 4096
    owner = owners(torch.tensor([length]), ranks)
    work = torch.zeros(ranks).index_add_(0, owner, torch.arange(1.0, length + 1))
    assert work.max() / work.min() < 1.01


def test_alone_nothing_is_cut() -> None:
    """One rank has everything."""
    assert cut(torch.tensor([0, 4]), torch.tensor([1]), Place()) is None
