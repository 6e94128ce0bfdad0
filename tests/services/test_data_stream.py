import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.services.data import PromptStream
from midflight.services.data import stream as order
from midflight.services.data.stream import permutation, walk


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


@given(size=st.integers(1, 1200), seed=st.integers(0, 2**40))
@settings(deadline=None)
def test_a_walk_is_an_order(size: int, seed: int) -> None:
    """Every number once, whatever the size is to a power of two."""
    place = walk(size, str(seed))
    assert sorted(place(n) for n in range(size)) == list(range(size))


def test_a_walk_looks_drawn() -> None:
    """Where a place leads says nothing of its neighbours, of other seeds, nor of where it lies; one is pinned."""
    size, bins = 20_000, 20
    first, second = walk(size, "1/0"), walk(size, "1/1")
    assert [walk(10, "1/0")(n) for n in range(10)] == [9, 6, 4, 0, 1, 7, 3, 5, 2, 8]
    places = [first(n) for n in range(size)]
    assert sum(first(n) == second(n) for n in range(size)) < 20
    steps = [(b - a) % size * bins // size for a, b in itertools.pairwise(places)]
    for values in ([p * bins // size for p in places[: size // 2]], steps):
        counts, mean = [values.count(n) for n in range(bins)], len(values) / bins
        assert sum((count - mean) ** 2 / mean for count in counts) < 50  # chi2 of 19 degrees, p = 1e-4


def test_a_large_source_is_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row once an epoch, in another order in the next, and the same row for a group after a restart."""
    monkeypatch.setattr(order, "SORTED", 50)
    stream, again = PromptStream(range(300), seed=3), PromptStream(range(300), seed=3)
    first, second = ([stream.prompt_at(epoch * 300 + n) for n in range(300)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(300))
    assert first != second
    assert [again.prompt_at(n) for n in (450, 7, 299, 300)] == [second[150], first[7], first[299], second[0]]
