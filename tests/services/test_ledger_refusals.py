"""When refusals are told, and when they end a run."""

from midflight.services.ledger.refusals import Refusals


def test_notes_at_powers_of_ten() -> None:
    """The first, then once a power of ten, however the totals jump."""
    watch = Refusals(most=1000)
    assert [n for n in (0, 1, 2, 9, 10, 11, 250, 251, 999, 1000) if watch.worth_a_note(n)] == [1, 10, 250, 1000]


def test_a_row_without_a_score_is_too_many() -> None:
    """Any scored sample begins the row anew."""
    watch = Refusals(most=10)
    assert not watch.too_many(9, 0)
    assert not watch.too_many(12, 1)
    assert not watch.too_many(21, 1)
    assert watch.too_many(22, 1)
