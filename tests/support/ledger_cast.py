"""Who acts in the world around the ledger's book, and what travels between them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from midflight.services.ledger.states import StageName

Lease = tuple[int, int]


@dataclass(slots=True)
class Worker:
    """A rollout, a reward server or a learner: what it holds, has begun, and has answered without hearing back."""

    name: str
    stage: StageName
    held: dict[int, int] = field(default_factory=dict)
    begun: dict[int, int] = field(default_factory=dict)
    unacked: dict[Lease, Any] = field(default_factory=dict)
    seen_turns: dict[Lease, tuple[int, bytes]] = field(default_factory=dict)  # what a grant told of the episode
    version: int = -1
    boot: int = 0  # the ledger's start it has heard of
    # learner only
    restored: bool = False
    step: int = 0
    history: dict[int, int] = field(default_factory=dict)  # id -> step, the effect in its weights
    batches: list[list[Lease]] = field(default_factory=list)
    seen: dict[int, int] = field(default_factory=dict)  # id -> newest epoch granted


@dataclass(slots=True)
class Letter:
    """Something on its way: `to` is "" for the ledger, else a worker's name."""

    to: str
    act: Callable[..., None]
    args: tuple[Any, ...]
