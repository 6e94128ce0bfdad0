"""Engines join and leave while a run goes on."""

from support.ledger_tools import LEARNER, book, take

from midflight.services.ledger.book import Book


def ask(ledger: Book, holder: str, version: int) -> int:
    """How many prompts an engine gets that has this version."""
    ledger.want(holder, "generate", 100, [], [], version, 0.0)
    granted = sum(len(grant.leases) for grant in ledger.match(0.0) if grant.holder == holder)
    ledger.credits["generate"].revoke(holder)
    return granted


def test_a_joining_engine_gets_no_prompt_before_its_weights_are_current() -> None:
    """It has loaded nothing, then an old version, then the newest."""
    ledger = book(groups=4, version_slack=0)
    ledger.publish(1, 1, LEARNER)
    ledger.publish(2, 2, LEARNER)
    assert ask(ledger, "rollout-1#1", -1) == 0
    assert ask(ledger, "rollout-1#1", 1) == 0
    assert ask(ledger, "rollout-1#1", 2) == 8


def test_the_work_of_one_that_leaves_is_granted_again() -> None:
    """Scaled away without an answer: another engine has it."""
    ledger = book(groups=2)
    held = take(ledger, "generate", "rollout-2#1")
    assert ask(ledger, "rollout#1", 0) == 0
    ledger.holder_died("rollout-2#1")
    assert ask(ledger, "rollout#1", 0) == len(held) == 4
