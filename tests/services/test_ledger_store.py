"""The SQLite file: what is written is read, in one transaction, or not at all."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from support.ledger_tools import LEARNER, book, generate, score, take, train, trained_steps

from midflight.services.ledger.balance import Balance, audit, balance
from midflight.services.ledger.book import Book
from midflight.services.ledger.changes import Snapshot
from midflight.services.ledger.evaluation import EvalResult
from midflight.services.ledger.row import Row
from midflight.services.ledger.states import Split, State
from midflight.services.ledger.store import Store, StoreError, StoreFull


def test_round_trip(tmp_path: Path) -> None:
    """A book written and loaded is the same book: rows, counts, queues, batches, policy."""
    b = book(0, eval_every=2, eval_samples=2, max_staleness=3)
    generate(b)
    score(b)
    trained_steps(b, 4)
    b.commit(1, LEARNER)
    b.commit(2, LEARNER)
    b.open_group(refused="bad row")
    b.open_group()
    take(b, "generate", n=1)
    store = Store(tmp_path / "l.sqlite")
    store.write(b.changes)
    assert not b.changes
    again = Book.load(b.rules, store.load(), 0.0)
    assert not audit(again)
    assert again.totals == b.totals
    assert again.counters() == b.counters()
    unsaved = {"begun", "solo"}
    for id_, row in b.rows.items():
        for name in set(Row.__dataclass_fields__) - unsaved:
            assert getattr(again.rows[id_], name) == getattr(row, name), (id_, name)
    assert balance(store.load()).problems() == balance(b.snapshot()).problems() == []
    assert balance(store.load()).states == balance(b.snapshot()).states


def test_payloads_life_results_and_meta(tmp_path: Path) -> None:
    """Trajectories until they are committed; every move of a sample in order; evaluation results; meta values."""
    store = Store(tmp_path / "l.sqlite")
    b = book(0)
    trained_steps(b, 1)
    b.changes.meta["handle"] = {"path": "/dev/shm/w"}
    b.changes.results.append(EvalResult(3, {"reward": 0.5}, 7, 1))
    store.write(b.changes)
    assert store.payload(2) == bytes(10)
    assert store.get("handle") == {"path": "/dev/shm/w"}
    assert store.get("nothing") is None
    assert store.results() == [EvalResult(3, {"reward": 0.5}, 7, 1)]
    life = store.life(2)
    states = ["issued", "running", "generated", "scoring", "ready", "leased", "trained"]
    assert [event.state for event in life] == states
    assert [event.epoch for event in life] == [0, 1, 1, 2, 2, 3, 3]
    assert (life[-1].who, life[-1].why) == (LEARNER, "step 1")
    assert all(event.at_ns > 0 for event in life)
    trained_steps(b, 2)
    b.commit(1, LEARNER)
    b.commit(2, LEARNER)
    store.write(b.changes)
    with pytest.raises(KeyError, match="no trajectory of sample 2"):
        store.payload(2)


def test_disk_full_writes_nothing_and_loses_nothing(tmp_path: Path) -> None:
    """StoreFull keeps every change; with space again one write holds everything."""
    path = tmp_path / "l.sqlite"
    store = Store(path, max_pages=60)
    b = book(2)
    store.write(b.changes)
    before = store.load()
    generate(b, size=400_000)
    changed = len(b.changes.rows), len(b.changes.payloads), len(b.changes.life)
    with pytest.raises(StoreFull, match=r"full; nothing was written"):
        store.write(b.changes)
    assert (len(b.changes.rows), len(b.changes.payloads), len(b.changes.life)) == changed
    assert [row.state for row in store.load().rows] == [row.state for row in before.rows]
    score(b)
    with pytest.raises(StoreFull):
        store.write(b.changes)
    store._db.execute("pragma max_page_count = 100000")
    store.write(b.changes)
    assert [row.state for row in store.load().rows] == [State.READY] * 4
    assert len(store.payload(3)) == 400_000
    assert [event.state for event in store.life(3)] == ["issued", "running", "generated", "scoring", "ready"]


def test_locked_file_is_full_for_now(tmp_path: Path) -> None:
    """Another writer only delays; a reader does not even that."""
    path = tmp_path / "l.sqlite"
    store = Store(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin immediate")
    b = book(1)
    with pytest.raises(StoreFull, match="locked"):
        store.write(b.changes)
    other.execute("rollback")
    other.execute("begin")
    assert other.execute("select count(*) from sample").fetchone() == (0,)
    store.write(b.changes)
    assert other.execute("select count(*) from sample").fetchone() == (0,)
    other.execute("commit")
    assert other.execute("select count(*) from sample").fetchone() == (2,)
    other.close()


def test_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    """The error says which file, what is wrong and what to do."""
    text = tmp_path / "text"
    text.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(StoreError, match="text: cannot be opened as a ledger"):
        Store(text)
    newer = tmp_path / "newer.sqlite"
    Store(newer).close()
    with sqlite3.connect(newer) as db:
        db.execute("pragma user_version = 99")
    with pytest.raises(StoreError, match="written with ledger schema 99, this midflight reads 2"):
        Store(newer)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("create table t(a)")
    with pytest.raises(StoreError, match="schema 0"):
        Store(other)


def test_durable_store_syncs_every_transaction(tmp_path: Path) -> None:
    """`durable` is SQLite's synchronous = FULL (2)."""
    assert Store(tmp_path / "a").setting("synchronous") == 1
    assert Store(tmp_path / "b", durable=True).setting("synchronous") == 2


CRASH = """
import sys
from pathlib import Path
from support.ledger_tools import book, generate, score, train
from midflight.services.ledger.store import Store
store = Store(Path(sys.argv[1]))
b = book(2)
store.write(b.changes)
for act in (generate, score, lambda b: train(b, 1)):
    act(b)
    store.write(b.changes)
    print(b.rows[0].state, flush=True)  # the acknowledgement
"""


@pytest.mark.parametrize(
    ("point", "acknowledged", "stored"),
    [
        ("before_commit:2", [], State.ISSUED),
        ("after_commit_before_ack:2", [], State.GENERATED),
        ("before_commit:4", ["generated", "ready"], State.READY),
        ("after_commit_before_ack:4", ["generated", "ready"], State.TRAINED),
    ],
)
def test_crash_points(tmp_path: Path, point: str, acknowledged: list[str], stored: State) -> None:
    """Killed before the commit: nothing of it is there. After it: all is there, and the resent answer is ok again."""
    path = tmp_path / "l.sqlite"
    environment = os.environ | {"MIDFLIGHT_CRASH_AT": point, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == acknowledged
    store = Store(path)
    snapshot = store.load()
    assert {row.state for row in snapshot.rows} == {stored}
    assert not balance(snapshot).problems()
    b = Book.load(book(0).rules, snapshot, 0.0)
    if stored is State.TRAINED:
        leases = [(row.id, row.done[2]) for row in snapshot.rows]
        assert b.trained(leases, 1, LEARNER) == "ok"
    else:
        generate(b, now=5.0)
        score(b, now=5.0)
        assert train(b, 1, now=5.0) == [0, 1, 2, 3]


def test_balance_names_what_is_wrong() -> None:
    """Every identity has its sentence."""
    assert Balance({"train": 3}, {"train": {"ready": 2}}).problems() == ["train: 3 issued but 2 in some state"]
    assert Balance({}, {}, step=1, committed=2).problems() == ["step 2 is committed but only step 1 was trained"]
    rows = [
        Row(0, 0, Split.TRAIN, State.TRAINED),
        Row(1, 0, Split.TRAIN, State.LEASED, epoch=1, holder="learner#1"),
        Row(2, 0, Split.TRAIN, State.RUNNING),
        Row(2, 0, Split.TRAIN, State.FILTERED, batch=4, step=2),
    ]
    assert balance(Snapshot(rows, {}, {})).problems() == [
        "sample 0 is trained without a step",
        "sample 1 is leased to a learner outside any batch",
        "sample 2 is leased without a holder",
        "sample 2 was granted no epoch",
        "sample 2 is there twice",
        "sample 2 has a step but is not trained",
        "sample 2 is in a batch but not ready, leased or trained",
        "train: 0 issued but 4 in some state",
    ]


def test_audit_sees_through_the_indexes() -> None:
    """A count or an index that disagrees with the rows is named."""
    b = book(2)
    generate(b)
    score(b)
    train(b, 1)
    assert not audit(b)
    b.totals[Split.TRAIN][State.TRAINED] -= 1
    b.batches.members[7] = [0]
    found = audit(b)
    assert "train trained: counted 3, there are 4" in found
    assert "sample 0 is in 2 batches" in found
