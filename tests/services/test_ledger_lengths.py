"""Lengths of what is generated, trained and dropped: counted once, and telling when long samples are starved."""

import heapq
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ledger_tools import LEARNER, score, small, take, train

from midflight.services.ledger.book import Book
from midflight.services.ledger.changes import Changes
from midflight.services.ledger.lengths import Histogram, Lengths, measured
from midflight.services.ledger.payload import COLUMNS, HEAD
from midflight.services.ledger.row import Generated, Scored
from midflight.services.ledger.states import Split, State
from midflight.services.ledger.store import Store


def blob(prompt: int, completion: int) -> bytes:
    """A trajectory as the ledger stores it."""
    tokens = prompt + completion
    mask = bytes(prompt) + b"\1" * completion
    columns = [mask if name == "mask" else b"\1" * tokens * size for name, _, size in COLUMNS]
    return b"".join([HEAD.pack(tokens, 2, 0, 0, 0), *columns, b"ok"])


def test_prompt_and_completion_are_told_apart_by_the_mask() -> None:
    """Whatever bytes are in the other columns."""
    assert measured(blob(7, 300)) == (7, 300)
    assert measured(blob(5, 0)) == (5, 0)


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=200), st.floats(0.01, 1.0))
@settings(deadline=None)
def test_quantiles_are_within_an_eighth(values: list[int], share: float) -> None:
    """And exact below 16; what is taken out again was never there."""
    histogram = Histogram()
    for value in [*values, 5, 77]:
        histogram.add(value)
    for value in (5, 77):
        histogram.add(value, -1)
    exact = sorted(values)[max(0, -(-round(share * len(values) * 1e9) // 10**9) - 1)]
    assert histogram.n == len(values)
    assert histogram.quantile(share) <= exact <= max(15, histogram.quantile(share) * 1.125)
    assert histogram.at_least(histogram.quantile(1.0)) >= 1


def test_every_sample_counts_once(tmp_path: Path) -> None:
    """Through a transaction that is tried twice, a restore that trains again, and the end of a sample."""
    store, lengths, book = Store(tmp_path / "ledger.sqlite"), Lengths(), Book(small(max_staleness=9))

    def write() -> None:
        for _ in range(2):
            lengths.note(book.changes)
        store.write(book.changes)

    book.publish(0, 0, LEARNER)
    for step in (1, 2, 3):
        for _ in range(2):
            book.open_group()
        for id_, epoch in take(book, "generate"):
            book.answer("generate", id_, epoch, "generate#1", Generated(blob(4, 10 * step), step - 1))
        score(book)
        write()
        train(book, step)
        book.publish(step, step, LEARNER)
        if step == 2:
            book.commit(2, LEARNER)
        write()
    assert (lengths.completions["generated"].n, lengths.completions["trained"].n) == (12, 12)
    book.restore(2, "learner#2")
    write()
    assert lengths.completions["trained"].bins == {10: 4, 20: 4, 30: 0}
    train(book, 3, "learner#2")
    book.commit(3, "learner#2")
    write()
    assert lengths.told() == {
        "generated/n": 12, "generated/prompt_p50": 4, "generated/prompt_p90": 4, "generated/prompt_max": 4,
        "generated/completion_p50": 20, "generated/completion_p90": 30, "generated/completion_max": 30,
        "trained/n": 12, "trained/prompt_p50": 4, "trained/prompt_p90": 4, "trained/prompt_max": 4,
        "trained/completion_p50": 20, "trained/completion_p90": 30, "trained/completion_max": 30,
        "kept": 1.0, "kept_long_prompt": 1.0, "kept_long_completion": 1.0,
    }  # fmt: skip
    assert set(lengths._samples) == {id_ for id_, row in book.rows.items() if row.split is Split.TRAIN}
    store.close()


def test_a_longer_trajectory_takes_the_place_of_the_shorter() -> None:
    """As one that grows from turn to turn; evaluation is not counted."""
    lengths = Lengths()
    for completion in (3, 8, 12):
        lengths.generated({1: blob(4, completion), 1 << 40: blob(1, 1)})
    lengths.moved([(1, State.FILTERED, "zero variance: every member"), (9, State.TRAINED, "step 1")])
    assert lengths.completions["generated"].bins.most_common(1) == [(12, 1)]
    assert lengths.told()["generated/n"] == 1
    assert "kept" not in lengths.told()


def run(max_lag: int, seed: int = 1, batches: int = 150) -> Lengths:
    """Engines whose answers take as long as they are; a learner that trains a batch of 16 as soon as there is one."""
    rng, lengths = random.Random(seed), Lengths()
    rules = small(
        prompts_per_rollout=16,
        responses_per_prompt=1,
        max_staleness=3,
        version_slack=2,
        max_lag=max_lag,
        lease_s=dict.fromkeys(("generate", "score", "train"), 1e9),
    )
    book, now = Book(rules), 0.0
    book.publish(0, 0, LEARNER)
    running: list[tuple[float, int, int, int, int]] = []
    while book.step < batches:
        while book.room():
            book.open_group()
        for id_, epoch in take(book, "generate", n=64 - len(running), now=now):
            length = round(min(4000, 20 * rng.paretovariate(0.9)))
            heapq.heappush(running, (now + length, id_, epoch, length, book.newest or 0))
        now, id_, epoch, length, version = heapq.heappop(running)
        book.answer("generate", id_, epoch, "generate#1", Generated(blob(length // 2, length), version))
        lengths.note(book.changes)  # a sample is scored only once its trajectory is written
        book.changes = Changes()
        for one, its_epoch in take(book, "score", now=now):
            book.answer("score", one, its_epoch, "score#1", Scored({"reward": rng.random()}))
        if leases := take(book, "train", LEARNER, 1, now):
            book.trained(leases, book.step + 1, LEARNER)
            book.publish(book.step, book.step, LEARNER)
            book.commit(book.step, LEARNER)
        lengths.note(book.changes)
        book.changes = Changes()
    return lengths


def test_starved_long_samples_show() -> None:
    """With a tight rule the longest are dropped far more often than the rest; with a wide one nothing is."""
    tight, wide = run(max_lag=1).told(), run(max_lag=1000).told()
    assert float(str(tight["kept"])) > 0.5
    assert float(str(tight["kept_long_completion"])) < 0.6 * float(str(tight["kept"]))
    assert int(str(tight["trained/completion_p90"])) < 0.7 * int(str(tight["stale/completion_p90"]))
    assert (wide["kept"], wide["kept_long_completion"], wide["kept_long_prompt"]) == (1.0, 1.0, 1.0)
    for kind in ("prompt", "completion"):
        trained, generated = (int(str(wide[f"{place}/{kind}_p90"])) for place in ("trained", "generated"))
        assert trained == pytest.approx(generated, rel=0.15)
