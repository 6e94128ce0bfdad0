"""`batch` messages to a batch the trainer takes: pieces collected, columns cut into documents, rewards weighed."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from midflight.messages.samples import Batch, BatchPart

from .packs.packing import Document
from .step import RolloutBatch


@dataclass(slots=True)
class Assembly:
    """The pieces of one batch as they arrive, in any order, repeated or not."""

    number: int
    pieces: int
    got: dict[int, list[tuple[BatchPart, Document]]] = field(default_factory=dict)

    def add(self, message: Batch, views: Mapping[str, "memoryview[Any]"]) -> bool:
        """Take a piece; True when the batch is whole."""
        self.got[message.piece] = [*cut(message, views)]
        return len(self.got) == self.pieces

    @property
    def parts(self) -> list[tuple[BatchPart, Document]]:
        """All samples, ordered by group and id: the order in which updates cut the batch."""
        every = [pair for piece in self.got.values() for pair in piece]
        return sorted(every, key=lambda pair: (pair[0].group, pair[0].id))

    @property
    def leases(self) -> list[tuple[int, int]]:
        """[(sample, epoch)] of the batch."""
        return [(part.id, part.epoch) for part, _ in self.parts]


def cut(message: Batch, views: Mapping[str, "memoryview[Any]"]) -> list[tuple[BatchPart, Document]]:
    """The samples of one piece."""
    tokens, mask, logprobs, versions = (views[name].tolist() for name in ("tokens", "mask", "logprobs", "versions"))
    out: list[tuple[BatchPart, Document]] = []
    start = 0
    for part in message.parts:
        end = start + part.tokens
        document = Document(
            str(part.id),
            tokens[start:end],
            [bool(bit) for bit in mask[start:end]],
            logprobs[start:end],
            versions[start:end],
            part.segments,
        )
        out.append((part, document))
        start = end
    return out


def objective_means(parts: list[tuple[BatchPart, Document]], weighed: Collection[str]) -> dict[str, float]:
    """Mean of each named reward over the samples that have it, as metrics; of a bare number only if it is weighed."""
    found: dict[str, list[float]] = {}
    for part, _ in parts:
        for name, value in part.rewards.items():
            found.setdefault(name, []).append(value)
    if set(found) == {"reward"} and "reward" not in weighed:
        return {}
    return {f"objective/{name}": sum(values) / len(values) for name, values in sorted(found.items())}


def lacking(parts: list[tuple[BatchPart, Document]], weights: Mapping[str, float]) -> list[str]:
    """Objectives of some samples that other samples do not name, by name, unless they weigh nothing."""
    every = set[str]().union(*(part.rewards for part, _ in parts))
    return sorted(
        name for name in every if weights.get(name, 1.0) and any(name not in part.rewards for part, _ in parts)
    )


ENDS = ("stop", "length", "context", "max_turns")
"""How an episode may end; `turn_metrics` has a share of each."""


def turn_metrics(parts: list[tuple[BatchPart, Document]]) -> dict[str, float]:
    """How often the model spoke in an episode, and the share of the episodes that ended in each way that is known."""
    turns = [part.turns for part, _ in parts]
    ends = [part.ended for part, _ in parts if part.ended]
    shares = {f"ended/{how}": ends.count(how) / len(ends) for how in ENDS} if ends else {}
    return {"turns/mean": sum(turns) / len(turns), "turns/max": float(max(turns)), **shares}


def rollout_batch(
    parts: list[tuple[BatchPart, Document]], weights: Mapping[str, float], steps: Mapping[int, int], step: int
) -> RolloutBatch:
    """Documents, their weighted rewards and their groups.

    An objective without a weight counts 1; one that a sample does not name is 0 in its reward.

    `steps` tells the step at which each policy version was published, so that a token's lag is counted in optimizer
    steps up to `step`, also across a restore; an unknown version counts as the oldest known.
    """
    rewards = [sum(weights.get(name, 1.0) * value for name, value in part.rewards.items()) for part, _ in parts]
    oldest = min(steps.values(), default=0)
    documents = [
        replace(document, versions=[steps.get(version, oldest) for version in document.versions])
        for _, document in parts
    ]
    return RolloutBatch(
        documents=documents,
        rewards=torch.tensor(rewards, dtype=torch.float64),
        group=torch.tensor([part.group for part, _ in parts]),
        version=step,
    )
