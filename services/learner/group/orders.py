"""What rank 0 has the other ranks of its group do, in order, over the group's store.

An order is a name and a body in msgpack; each rank does the same as rank 0, at the same place of the sequence, so that
their collectives meet. The store lives in rank 0's process: whoever waits for an order learns of its death at once.
"""

from datetime import timedelta
from typing import Any

import msgpack
import torch
from torch._C._distributed_c10d import Store

from midflight.services.learner.packs.packing import Document
from midflight.services.learner.prepare import RolloutBatch

FOREVER = timedelta(days=365)
"""Ranks wait for as long as the run does; what ends the wait is an order, or the end of rank 0."""


class Orders:
    """One side of the sequence; `follow` and `give` count it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next = 0
        self._kept: list[str] = []

    def give(self, name: str, body: Any = None) -> None:
        """Rank 0's side."""
        key = str(self._next)
        self._store.set(key, msgpack.packb([name, body]))
        self._next += 1
        self._kept.append(key)

    def done(self) -> None:
        """All ranks have met in a collective: what was ordered before is known to all, and forgotten."""
        for key in self._kept:
            self._store.delete_key(key)
        self._kept.clear()

    def follow(self) -> tuple[str, Any]:
        """The other side: the next order. Raises RuntimeError when rank 0 is gone."""
        key = str(self._next)
        self._store.wait([key], FOREVER)
        name, body = msgpack.unpackb(self._store.get(key), strict_map_key=False)
        self._next += 1
        return str(name), body


def packed(batch: RolloutBatch) -> dict[str, Any]:
    """A batch as the body of an order."""
    return {
        "documents": [
            [d.name, list(d.ids), list(d.action_mask), list(d.behaviour_logp), list(d.versions), list(d.segments)]
            for d in batch.documents
        ],
        "rewards": batch.rewards.tolist(),
        "group": batch.group.tolist(),
        "version": batch.version,
        "baseline": batch.baseline,
    }


def unpacked(body: dict[str, Any]) -> RolloutBatch:
    """The batch again, to the last bit."""
    return RolloutBatch(
        documents=[Document(*fields) for fields in body["documents"]],
        rewards=torch.tensor(body["rewards"], dtype=torch.float64),
        group=torch.tensor(body["group"]),
        version=body["version"],
        baseline=body["baseline"],
    )
