import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.services.data import PromptStream
from midflight.services.data.stream import permutation


@given(rows=st.integers(1, 60), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_every_row_exactly_once_an_epoch(rows: int, seed: int, epoch: int) -> None:
    """Within any epoch each row is issued exactly once."""
    stream = PromptStream(range(rows), seed)
    groups = range(epoch * rows, (epoch + 1) * rows)
    assert sorted(stream.prompt_at(group) for group in groups) == list(range(rows))
    assert {stream.epoch_of(group) for group in groups} == {epoch}


@given(seed=st.integers(0, 2**40))
def test_the_row_of_a_group_does_not_depend_on_history(seed: int) -> None:
    """Asked in any order, also by a fresh stream after a restart, a group has the same row."""
    groups = list(range(100))
    forward = [PromptStream(range(7), seed).prompt_at(group) for group in groups]
    random.Random(seed).shuffle(groups)
    stream = PromptStream(range(7), seed)
    assert all(stream.prompt_at(group) == forward[group] for group in groups)


def test_epochs_and_seeds_differ() -> None:
    """Epochs are not copies of one another, nor are seeds; one order is pinned so that it can never drift."""
    stream = PromptStream(range(50), seed=1)
    first, second = ([stream.prompt_at(epoch * 50 + i) for i in range(50)] for epoch in (0, 1))
    assert first != second
    assert first != [PromptStream(range(50), seed=2).prompt_at(i) for i in range(50)]
    assert permutation(8, "1/0") == [5, 6, 1, 2, 3, 4, 7, 0]


def test_impossible_requests_are_errors() -> None:
    """No rows and negative groups are refused."""
    with pytest.raises(ValueError, match="at least one row"):
        PromptStream([], seed=0)
    with pytest.raises(ValueError, match="negative"):
        PromptStream([1], seed=0).prompt_at(-1)
