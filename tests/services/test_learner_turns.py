"""What a step says of the episodes in its batch."""

import random

import pytest
from support.learner_toys import random_document

from midflight.messages.samples import BatchPart
from midflight.services.learner.batches import lacking, objective_means, rollout_batch, turn_metrics


def part(turns: int, ended: str) -> BatchPart:
    return BatchPart(id=1, epoch=1, group=0, tokens=2, version=0, rewards={}, turns=turns, ended=ended)


def measured(*episodes: tuple[int, str]) -> dict[str, float]:
    document = random_document(random.Random(0), "1")
    return turn_metrics([(part(*episode), document) for episode in episodes])


def test_turns_and_ends_of_a_batch() -> None:
    """Shares are of the episodes whose end is known, and add up to one."""
    found = measured((1, "stop"), (3, "max_turns"), (2, "stop"), (2, "context"), (4, ""))
    assert found == {
        "turns/mean": pytest.approx(2.4), "turns/max": 4.0,
        "ended/stop": 0.5, "ended/length": 0.0, "ended/context": 0.25, "ended/max_turns": 0.25,
    }  # fmt: skip


def test_no_shares_of_ends_that_nobody_told() -> None:
    """Trajectories of an earlier version of the ledger do not say how they ended."""
    assert measured((1, ""), (1, "")) == {"turns/mean": 1.0, "turns/max": 1.0}


def test_an_objective_that_only_some_samples_name() -> None:
    """Its mean is over those that name it; in the weighted reward of the others it is 0, which is told if it weighs."""
    document = random_document(random.Random(0), "1")
    rewards = [{"exact": 1.0}, {"exact": 0.0, "style": 2.0, "free": 9.0}]
    parts = [(part(1, "").model_copy(update={"rewards": one}), document) for one in rewards]
    weights = {"style": 0.5, "free": 0.0}
    assert lacking(parts, weights) == ["style"]
    assert lacking(parts[:1], weights) == lacking([], weights) == []
    assert objective_means(parts, weights) == {"objective/exact": 0.5, "objective/free": 9.0, "objective/style": 2.0}
    assert rollout_batch(parts, weights, {0: 0}, 0).rewards.tolist() == [1.0, 1.0]
