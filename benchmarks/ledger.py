"""CPU of the ledger's core and store for a sample's whole life. One command, one table:

    python benchmarks/ledger.py [--samples 20000] [--bytes 10000] [--drain 64]

Each sample is issued, granted, held, begun, generated (payload written), granted and scored, batched, leased, trained,
committed and closed (payload deleted), with its rows and life in SQLite WAL, one transaction a loop turn of `drain`
answers, as the service does it. Messages and sockets are not in it. Targets: 60 us a sample, at most 200.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

from midflight.services.ledger.balance import audit
from midflight.services.ledger.book import Book
from midflight.services.ledger.changes import Changes
from midflight.services.ledger.grants import Grant
from midflight.services.ledger.row import Generated, Scored
from midflight.services.ledger.rules import Rules
from midflight.services.ledger.states import Split, StageName, State
from midflight.services.ledger.store import Store

COMMIT_EVERY = 5
"""Steps between two checkpoints."""


class Timed:
    """A store whose CPU time is counted apart from the rest."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.write_s = self.read_s = 0.0
        self.writes = 0

    def write(self, changes: Changes) -> None:
        """Write, and count."""
        start = time.process_time()
        self.store.write(changes)
        self.write_s += time.process_time() - start
        self.writes += 1

    def read(self, grants: list[Grant]) -> None:
        """Read the trajectories of grants that need them, and count."""
        start = time.process_time()
        for grant in grants:
            if grant.stage != "generate":
                for id_, _ in grant.leases:
                    self.store.payload(id_)
        self.read_s += time.process_time() - start


class Worker:
    """A worker that answers `drain` samples a turn."""

    def __init__(self, stage: StageName, credit: int) -> None:
        self.name, self.stage, self.credit = f"{stage}#1", stage, credit
        self.held: list[tuple[int, int]] = []

    def turn(self, book: Book, drain: int, payload: bytes, now: float) -> None:
        """Want, begin, and answer the oldest leases."""
        todo = self.held[:drain]
        n = self.credit - len(self.held) if self.stage != "train" else int(not self.held)
        book.want(self.name, self.stage, n, self.held, todo, book.newest or 0, now)
        if self.stage == "train":
            if self.held:
                book.trained(self.held, book.step + 1, self.name)
                book.publish(book.step, book.step, self.name)
                if book.step % COMMIT_EVERY == 0:
                    book.commit(book.step, self.name)
            self.held = []
            return
        for id_, epoch in todo:
            outcome = Generated(payload, book.newest or 0) if self.stage == "generate" else Scored({"reward": id_ % 2})
            book.answer(self.stage, id_, epoch, self.name, outcome)
        del self.held[:drain]


def run(path: Path, samples: int, size: int, drain: int) -> tuple[float, Timed, Book]:
    """Drive `samples` through their life; return (CPU seconds in all, store, book)."""
    book = Book(Rules(prompts_per_rollout=16, responses_per_prompt=8, max_staleness=3, max_ready_bytes=1 << 30))
    store = Timed(path)
    workers = {w.name: w for w in (Worker("generate", 128), Worker("score", 128), Worker("train", 1))}
    payload = os.urandom(size)
    book.publish(0, 0, "train#1")
    now, start = 0.0, time.process_time()
    while book.totals[Split.TRAIN][State.TRAINED] < samples:
        now += 0.01
        for worker in workers.values():
            worker.turn(book, drain, payload, now)
        book.expire(now)
        while book.room():
            book.open_group()
        grants = book.match(now)
        store.write(book.changes)
        store.read(grants)
        for grant in grants:
            workers[grant.holder].held += grant.leases
    return time.process_time() - start, store, book


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=10_000)
    parser.add_argument("--drain", type=int, default=64, help="answers a worker sends a turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cpu, store, book = run(Path(folder) / "ledger.sqlite", options.samples, options.bytes, options.drain)
    if faults := audit(book):
        raise SystemExit(f"the ledger does not balance: {faults}")
    done = book.totals[Split.TRAIN][State.TRAINED]
    us = 1e6 / done
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print(f"machine    {machine}, Python {platform.python_version()}")
    print(f"load       {os.getloadavg()[0]:.1f}; {done} samples of {options.bytes} B, {store.writes} transactions")
    print(f"book       {(cpu - store.write_s - store.read_s) * us:6.1f} us CPU a sample")
    print(f"write      {store.write_s * us:6.1f} us")
    print(f"read twice {store.read_s * us:6.1f} us")
    print(f"all        {cpu * us:6.1f} us   (target 60, limit 200) = {done / cpu:,.0f} samples/s a core")
    print(json.dumps({"us_per_sample": round(cpu * us, 1), "samples": done, "bytes": options.bytes}))


if __name__ == "__main__":
    main()
