"""The ledger's memory: one SQLite file (WAL), one transaction a flush.

    sample      one row a sample, in its present state
    payload     trajectories, opaque, apart from the rows so that a change of state does not rewrite them
    life        every move of every sample, append-only
    evaluation  results of evaluation rounds
    meta        key -> JSON

synchronous NORMAL survives every kill of a process; a power cut may lose the last transactions, FULL does not. The
file must lie on a local disk: WAL needs memory shared with every reader.
"""

import json
import os
import signal
import sqlite3
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midflight.kernel.mistake import UserMistake

from .changes import Changes, Snapshot
from .evaluation import EvalResult
from .row import EVAL_BASE, Row, reason_of
from .states import Split, State

SCHEMA = 2
SETTINGS = ("page_size = 8192", "journal_mode = wal", "wal_autocheckpoint = 4000", "secure_delete = off")
"""Measured in CPU a sample of 10 kB: pages of 8 KiB instead of 4 save 5 us, a longer log (32 MB) 3 us, and not
overwriting deleted trajectories with zeros, which some builds of SQLite do by default, 13 us."""

REMEDY = "move the run directory away and start a new run"

TABLES = """
create table sample(
    id integer primary key, grp integer not null, state text not null, epoch integer not null,
    generated_epoch integer not null, scored_epoch integer not null, trained_epoch integer not null,
    past text not null, strikes integer not null, holder text, min_version integer not null, bytes integer not null,
    rewards text not null, why text not null, step integer, batch integer, cohort integer, closed integer not null);
create table payload(id integer primary key, data blob not null);
create table life(id integer not null, at_ns integer not null, state text not null, epoch integer not null,
    who text not null, why text not null);
create table evaluation(
    version integer primary key, rewards text not null, n integer not null, refused integer not null);
create table meta(key text primary key, value text not null) without rowid;
"""
PUT_ROW = f"insert or replace into sample values({','.join('?' * 18)})"

NAME = {state: str.__str__(state) for state in State}
"""Exact strings: SQLite's binding is slower for subclasses of str."""


class StoreError(UserMistake):
    """The file is not a ledger this version can read."""


class StoreFull(RuntimeError):
    """Nothing was written: the disk is full, or another process holds the file. Keep the changes and try
    again."""


@dataclass(frozen=True, slots=True)
class LifeEvent:
    """One move of a sample. at_ns: wall clock of the transaction, in ns since 1970, for people only."""

    id: int
    at_ns: int
    state: str
    epoch: int
    who: str
    why: str


def crash_point(name: str) -> None:
    """Kill this process as `kill -9` would, if MIDFLIGHT_CRASH_AT is `name` or `name:N` (the Nth pass). For tests."""
    wanted, _, count = os.environ.get("MIDFLIGHT_CRASH_AT", "").partition(":")
    if wanted == name:
        _passes[name] = _passes.get(name, 0) + 1
        if _passes[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)


_passes: dict[str, int] = {}


class Store:
    """An open ledger file.

    path: created if missing. durable: survive power cuts too, for an fsync a transaction (synchronous FULL).
    max_pages: size limit in pages of 8 KiB, for tests of a full disk.
    Raises StoreError if the file is something else or of another schema.
    """

    def __init__(self, path: Path, durable: bool = False, max_pages: int | None = None) -> None:
        self.path = path
        self._db = sqlite3.connect(path, isolation_level=None, timeout=0.1)
        try:
            for setting in (*SETTINGS, f"synchronous = {'full' if durable else 'normal'}"):
                self._db.execute(f"pragma {setting}")
            if max_pages is not None:
                self._db.execute(f"pragma max_page_count = {max_pages}")
            self._check_schema()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise StoreError(f"{path}: cannot be opened as a ledger ({error}); {REMEDY}") from error

    def _check_schema(self) -> None:
        found = self._db.execute("pragma user_version").fetchone()[0]
        if not found and not self._db.execute("select count(*) from sqlite_master").fetchone()[0]:
            self._db.executescript(f"begin; {TABLES} pragma user_version = {SCHEMA}; commit")
        elif found != SCHEMA:
            self._db.close()
            raise StoreError(
                f"{self.path}: written with ledger schema {found}, this midflight reads {SCHEMA}; "
                "resume with the version that wrote it, or start a new run directory"
            )

    def setting(self, name: str) -> object:
        """Return the value of a SQLite pragma."""
        return self._db.execute(f"pragma {name}").fetchone()[0]

    def close(self) -> None:
        """Close the file; what was not written is lost."""
        self._db.close()

    def load(self) -> Snapshot:
        """Read everything a book starts from. Raises StoreError when the file is damaged."""
        try:
            return self._load()
        except (sqlite3.DatabaseError, ValueError) as error:
            raise StoreError(f"{self.path}: damaged ({error}); {REMEDY}") from error

    def _load(self) -> Snapshot:
        closed = {
            (split, state): n
            for split, state, n in self._db.execute(
                "select case when id >= ? then 'eval' else 'train' end, state, count(*) from sample "
                "where closed = 1 group by 1, 2",
                (EVAL_BASE,),
            )
        }
        rows = [_row(values) for values in self._db.execute("select * from sample where closed = 0 order by id")]
        meta = {key: json.loads(value) for key, value in self._db.execute("select key, value from meta")}
        reasons: Counter[str] = Counter()
        for why, n in self._db.execute(
            "select why, count(*) from sample where closed = 1 and state in ('filtered', 'refused') group by why"
        ):
            reasons[reason_of(why)] += n
        return Snapshot(rows, closed, meta, reasons)

    def newest_by_reason(self) -> dict[str, int]:
        """By reason, the newest sample that was filtered or refused for it."""
        newest: dict[str, int] = {}
        for why, sample in self._db.execute(
            "select why, max(id) from sample where state in ('filtered', 'refused') group by why order by 2"
        ):
            newest[reason_of(why)] = sample
        return newest

    def write(self, changes: Changes) -> None:
        """Write all changes in one transaction and clear them; only now may replies and grants be sent.

        Raises StoreFull with nothing written and nothing cleared.
        """
        if not changes:
            return
        try:
            self._db.execute("begin immediate")
            self._write(changes)
            crash_point("before_commit")
            self._db.execute("commit")
        except sqlite3.OperationalError as error:
            with suppress(sqlite3.OperationalError):
                self._db.execute("rollback")  # SQLite may have rolled back already
            raise StoreFull(f"{self.path}: {error}; nothing was written, the ledger tries again") from error
        changes.clear()
        crash_point("after_commit_before_ack")

    def _write(self, changes: Changes) -> None:
        many, now = self._db.executemany, time.time_ns()
        many(PUT_ROW, [_values(row) for row in changes.rows.values()])
        if changes.forget:
            many("delete from payload where id = ?", [(id_,) for id_ in changes.forget])
        many("insert or replace into payload values(?, ?)", changes.payloads.items())
        events = [(id_, now, NAME[state], epoch, who, why) for id_, state, epoch, who, why in changes.life]
        many("insert into life values(?, ?, ?, ?, ?, ?)", events)
        if changes.meta:
            many("insert or replace into meta values(?, ?)", [(k, json.dumps(v)) for k, v in changes.meta.items()])
        if changes.results:
            many(
                "insert or replace into evaluation values(?, ?, ?, ?)",
                [(r.version, json.dumps(r.rewards), r.n, r.refused) for r in changes.results],
            )

    def payload(self, id_: int) -> bytes:
        """Return the trajectory of a sample (about 5 us for 10 kB). Raises KeyError if it is not stored."""
        row = self._db.execute("select data from payload where id = ?", (id_,)).fetchone()
        if row is None:
            raise KeyError(f"no trajectory of sample {id_} in {self.path}")
        return bytes(row[0])

    def get(self, key: str) -> object:
        """Return a meta value, or None; `Changes.meta` writes it."""
        row = self._db.execute("select value from meta where key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def life(self, id_: int) -> list[LifeEvent]:
        """Return every move of one sample, in order. Reads the whole life table: for people, not for the
        loop."""
        return [
            LifeEvent(*values) for values in self._db.execute("select * from life where id = ? order by rowid", (id_,))
        ]

    def results(self) -> list[EvalResult]:
        """Return the evaluation results, by version."""
        rows = self._db.execute("select version, rewards, n, refused from evaluation order by version")
        return [EvalResult(version, json.loads(rewards), n, refused) for version, rewards, n, refused in rows]


def _values(row: Row) -> tuple[object, ...]:
    return (
        row.id, row.group, NAME[row.state], row.epoch, *row.done, json.dumps(row.past) if row.past else "",
        row.strikes, row.holder, row.min_version, row.bytes, row.rewards, row.why,
        row.step, row.batch, row.cohort, row.closed,
    )  # fmt: skip


def _row(values: tuple[Any, ...]) -> Row:
    id_, group, state, epoch, *done = values[:7]
    past, strikes, holder, version, size, rewards, why, step, batch, cohort, closed = values[7:]
    return Row(
        id_, group, Split.EVAL if id_ >= EVAL_BASE else Split.TRAIN, State(state), epoch, done,
        tuple(json.loads(past)) if past else (), strikes, holder,
        min_version=version, bytes=size, rewards=rewards, why=why, step=step, batch=batch, cohort=cohort,
        closed=bool(closed),
    )  # fmt: skip
