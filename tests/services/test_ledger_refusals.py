"""When refusals are told, and when they end a run."""

from midflight.services.ledger.refusals import Reading, Refusals, because


def test_notes_at_powers_of_ten() -> None:
    """The first, then once a power of ten, however the totals jump."""
    watch = Refusals(most=1000)
    assert [n for n in (0, 1, 2, 9, 10, 11, 250, 251, 999, 1000) if watch.worth_a_note(n, 0.0)] == [1, 10, 250, 1000]


def test_a_row_without_a_score_is_too_many() -> None:
    """Any scored sample begins the row anew."""
    watch = Refusals(most=10)
    assert not watch.too_many(9, 0, 0.0)
    assert not watch.too_many(12, 1, 0.0)
    assert not watch.too_many(21, 1, 0.0)
    assert watch.too_many(22, 1, 0.0)


def test_slow_refusals_are_few_but_too_many() -> None:
    """Eight by a time limit of ten seconds: no need to wait for a thousand. A score begins the minute anew."""
    watch = Refusals(most=1000)
    assert not any(watch.too_many(n, 0, 10.0 * n) for n in range(6))
    assert not watch.too_many(7, 0, 70.0)
    assert watch.too_many(8, 0, 80.0)
    assert not watch.too_many(9, 1, 90.0)
    assert not watch.too_many(16, 1, 149.0)
    assert watch.too_many(17, 1, 151.0)


def test_notes_while_nothing_is_scored() -> None:
    """Between powers of ten, every twenty seconds of a drought."""
    watch = Refusals(most=1000)
    told = []
    for second in range(60):
        watch.too_many(second // 4, 0, float(second))
        if watch.worth_a_note(second // 4, float(second)):
            told.append(second)
    assert told == [4, 24, 40]


def test_what_was_refused_before_is_not_judged() -> None:
    """A run that goes on has a past; only what it sees is a row."""
    watch = Refusals(most=10)
    assert not watch.too_many(661, 0, 0.0)
    assert not watch.too_many(670, 0, 1.0)
    assert watch.too_many(671, 0, 2.0)
    assert watch.row == 10


def test_unusable_rows_are_hopeless_only_without_others_between_them() -> None:
    """However few the others are; the text has the share of all that were read."""
    reading = Reading(most=100)
    for number in range(1000):
        reading.add("" if number % 99 == 0 else f"bad {number}")
        assert not reading.hopeless
    for _ in range(100):
        reading.add("worse")
    assert reading.hopeless
    assert reading.told() == "1,089 of the last 1,100 rows read (99 %) cannot be used"
    assert because(reading.why) == "; the last: worse"
    assert because("") == ""
