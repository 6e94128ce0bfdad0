"""Shortcuts that take samples through the ledger's book."""

from typing import Any

from midflight.services.ledger.book import Book
from midflight.services.ledger.row import Generated, Scored
from midflight.services.ledger.rules import Rules
from midflight.services.ledger.states import StageName, Verdict

LEARNER = "learner#1"


def small(**changes: Any) -> Rules:
    """Rules with batches of two groups of two, long leases, and what a test changes."""
    values: dict[str, Any] = {
        "prompts_per_rollout": 2,
        "responses_per_prompt": 2,
        "max_staleness": 2,
        "lease_s": {"generate": 10.0, "score": 10.0, "train": 60.0},
    }
    return Rules(**(values | changes))


def book(groups: int = 2, **changes: Any) -> Book:
    """A book with policy version 0 and some groups issued."""
    made = Book(small(**changes))
    made.publish(0, 0, LEARNER)
    for _ in range(groups):
        made.open_group()
    return made


def take(book: Book, stage: StageName, holder: str = "", n: int = 100, now: float = 0.0) -> list[tuple[int, int]]:
    """Let `holder` want `n` of a stage, holding all it has; return the leases it is granted now."""
    holder = holder or (LEARNER if stage == "train" else f"{stage}#1")
    held = [(id_, book.rows[id_].epoch) for id_ in book.leases[stage].of(holder)]
    book.want(holder, stage, n, held, [], book.newest if book.newest is not None else -1, now)
    grants = [grant for grant in book.match(now) if grant.holder == holder]
    book.credits[stage].revoke(holder)
    return [lease for grant in grants for lease in grant.leases]


def generate(book: Book, *, version: int = 0, size: int = 10, now: float = 0.0) -> list[int]:
    """Generate everything that waits; return the ids."""
    leases = take(book, "generate", now=now)
    for id_, epoch in leases:
        outcome = Generated(bytes(size), version)
        assert book.answer("generate", id_, epoch, "generate#1", outcome) is Verdict.OK
    return [id_ for id_, _ in leases]


def score(book: Book, rewards: dict[int, float] | None = None, now: float = 0.0) -> list[int]:
    """Score everything that waits, by default with different rewards; return the ids."""
    leases = take(book, "score", now=now)
    for id_, epoch in leases:
        value = float(id_) if rewards is None else rewards[id_]
        assert book.answer("score", id_, epoch, "score#1", Scored({"reward": value})) is Verdict.OK
    return [id_ for id_, _ in leases]


def train(book: Book, step: int, holder: str = LEARNER, now: float = 0.0) -> list[int]:
    """Take one batch and train it; return the ids."""
    leases = take(book, "train", holder, 1, now)
    assert book.trained(leases, step, holder) is Verdict.OK
    return [id_ for id_, _ in leases]


def trained_steps(book: Book, steps: int, *, groups: int = 2) -> None:
    """Run whole steps: issue, generate, score, train, publish."""
    for step in range(book.step + 1, book.step + 1 + steps):
        for _ in range(groups):
            book.open_group()
        generate(book, version=book.newest or 0)
        score(book)
        train(book, step)
        book.publish(step, step, LEARNER)
