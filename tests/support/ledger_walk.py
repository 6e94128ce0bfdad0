"""Seeded random walks through the ledger's world: the checker of the state machine at a hundredth of its cost."""

import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

from midflight.services.ledger.book import Book
from midflight.services.ledger.rules import Rules
from support.ledger_promises import check
from support.ledger_world import World

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where walks keep their file: thousands of them should not wait for a disk."""
Action = Callable[[World, random.Random], None]

ACTIONS: list[tuple[int, Action]] = [
    (10, lambda w, r: w.deliver(r.randrange(1000))),
    (6, lambda w, r: w.round()),
    (4, lambda w, r: w.turn()),
    (4, lambda w, r: w.flush()),
    (4, lambda w, r: w.speak(r.randrange(4))),
    (4, lambda w, r: w.begin(r.randrange(4), r.randrange(1000))),
    (4, lambda w, r: w.finish(r.randrange(4), r.randrange(1000))),
    (3, lambda w, r: w.copy()),
    (3, lambda w, r: w.deliver_late()),
    (2, lambda w, r: w.checkpoint()),
    (1, lambda w, r: w.load_weights(r.randrange(2))),
    (1, lambda w, r: w.lose(r.randrange(1000))),
    (1, lambda w, r: w.kill(r.randrange(4))),
    (1, lambda w, r: w.lose_checkpoint()),
    (1, lambda w, r: w.restart()),
    (1, lambda w, r: w.restart_busy()),
    (1, lambda w, r: w.restart_heard()),
    (1, lambda w, r: w.advance(r.choice([0.1, 1.0, 3.0, 12.0, 40.0]))),
]


def some_rules(rng: random.Random) -> Rules:
    """Return small rules of every kind."""
    deterministic = rng.random() < 0.25
    eval_every = rng.choice([0, 2])
    return Rules(
        prompts_per_rollout=rng.choice([1, 2]),
        responses_per_prompt=rng.choice([1, 2, 3]),
        max_staleness=0 if deterministic else rng.choice([0, 1, 2]),
        deterministic=deterministic,
        max_lag=rng.choice([None, 2]),
        filter_zero_variance=rng.random() < 0.3,
        lease_s={"generate": 10.0, "score": 10.0, "train": 30.0},
        eval_every=eval_every,
        eval_samples=eval_every,
    )


def walk(seed: int, steps: int = 100, book: type[Book] = Book, *, ack_first: bool = False) -> World:
    """Take `steps` random actions, checking every promise after each, then let the world run to its end."""
    rng = random.Random(seed)
    rules = some_rules(rng)
    poison = frozenset({3}) if rng.random() < 0.3 and not rules.deterministic else frozenset[int]()
    weights, actions = zip(*ACTIONS, strict=True)
    with tempfile.TemporaryDirectory(prefix="ledger-", dir=MEMORY) as folder:
        world = World(
            Path(folder) / "ledger.sqlite",
            rules,
            book,
            groups=13,
            poison=poison,
            ack_first=ack_first,
            ends=seed % 2 == 0,
            turns=(1, 3, 2)[seed % 3],
        )
        try:
            for action in rng.choices(actions, weights, k=steps):
                action(world, rng)
                check(world)
            world.drain()
        finally:
            world.store.close()
    return world
