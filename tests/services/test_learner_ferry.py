"""Checkpoints of ranks whose host does not see the run directory: sent when saved, fetched when loaded."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore

from midflight.services.learner.checkpoints import saving
from midflight.services.learner.checkpoints.checkpoint import CheckpointError, latest_verified
from midflight.services.learner.checkpoints.durable import write_file
from midflight.services.learner.checkpoints.ferry import BLOCK, Ferry, receive, send
from midflight.services.learner.checkpoints.reports import Reports
from midflight.services.learner.checkpoints.saving import Share, save

DEADLINE_S = 60.0
BIG: list[bytes | memoryview] = [os.urandom(2 * BLOCK + 5), b"", memoryview(b"end")]


def by_both(tmp_path: Path, step: int, reports: list[Reports]) -> list[BaseException | None]:
    """A save by two ranks, each with a root of its own; -> what each raised."""

    def one(rank: int) -> BaseException | None:
        share = Share({f"a-rank-{rank}.bin": BIG, f"b-rank-{rank}.bin": [b"b"]}, told=rank)
        try:
            save(tmp_path / f"host-{rank}", step, share, {}, reports=reports[rank])
        except (CheckpointError, RuntimeError) as error:
            return error
        return None

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2), timeout=DEADLINE_S))


def test_what_is_sent_is_received() -> None:
    """Byte for byte, in blocks; and the store keeps nothing of it."""
    store = HashStore()
    before = store.num_keys()
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send, store, "x", BIG)
        got = b"".join(receive(store, "x"))
        sent.result(DEADLINE_S)
    assert got == b"".join(bytes(one) for one in BIG)
    assert store.num_keys() == before


def test_a_save_goes_through_the_store_where_the_draft_is_not_seen(tmp_path: Path) -> None:
    """Two hosts with a folder each: the first has all of it, verified, and the other nothing."""
    store = HashStore()
    reports = [Reports(store, rank, 2) for rank in range(2)]
    for step in (1, 2):
        assert by_both(tmp_path, step, reports) == [None, None]
    found = latest_verified(tmp_path / "host-0")
    assert found.manifest
    assert found.manifest.step == 2
    assert set(found.manifest.files) == {f"{stem}-rank-{rank}.bin" for stem in "ab" for rank in (0, 1)}
    assert not (tmp_path / "host-1").exists()


class Halting:
    """A rank's store that lets a test come between what the first rank reads and what another one says next."""

    def __init__(self, store: HashStore, read: threading.Event, said: threading.Event, first: bool) -> None:
        self._store, self._read, self._said, self._first = store, read, said, first
        self._told = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def set(self, key: str, value: str) -> None:
        """What another rank tells after its first word comes when that has been read."""
        if self._first or key != "1 1":
            self._store.set(key, value)
            return
        self._told += 1
        if self._told > 1:
            assert self._read.wait(DEADLINE_S)
        self._store.set(key, value)
        if self._told > 1:
            self._said.set()

    def get(self, key: str) -> bytes:
        """The first rank is slow in between."""
        found = self._store.get(key)
        if self._first and key == "1 1":
            self._read.set()
            assert self._said.wait(DEADLINE_S)
        return found


def test_a_rank_that_has_nothing_to_send_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second copy of a model writes none of it; whatever it says follows at once on its first word."""
    monkeypatch.setattr(saving, "WRITE_S", 2.0)
    store, read, said = HashStore(), threading.Event(), threading.Event()
    halting: list[Any] = [Halting(store, read, said, not rank) for rank in range(2)]
    reports = [Reports(one, rank, 2) for rank, one in enumerate(halting)]

    def other() -> None:
        save(tmp_path / "host-1", 1, Share({}, told="there"), {}, reports=reports[1])
        said.set()

    heard: list[list[Any]] = []
    share = Share({"a.bin": BIG}, "here", lambda folder, names, told: heard.append(told) or {})  # type: ignore[func-returns-value]
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(other)
        save(tmp_path / "host-0", 1, share, {}, reports=reports[0])
        others.result(DEADLINE_S)
    assert heard == [["here", "there"]]


def test_a_full_disk_of_the_first_host_is_told_and_the_next_save_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sends is heard to its end, so that both are ready for the next one."""
    store = HashStore()
    reports = [Reports(store, rank, 2) for rank in range(2)]

    def refuses(path: Path, chunks: object) -> object:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_file", refuses)
        first, other = by_both(tmp_path, 1, reports)
    assert str(first).endswith("rank 1: [Errno 28] No space left on device; older ones remain")
    assert other is None
    assert by_both(tmp_path, 2, reports) == [None, None]


def test_hosts_that_do_not_see_a_checkpoint_get_it_once(tmp_path: Path) -> None:
    """One rank of a host fetches, the other waits; a rank that sees the run directory does nothing."""
    store = HashStore()
    here, there = tmp_path / "here", tmp_path / "there"
    for name in ("step-00000003", "reference/step-00000000"):
        (here / name).mkdir(parents=True)
        write_file(here / name / "a.bin", BIG)
    (there / "step-00000001").mkdir(parents=True)
    apart = {2: "fetches", 3: "waits"}
    first = Ferry(store, 0, apart)
    Ferry(store, 1, {}).fetch(tmp_path / "untouched")
    ranks = [Ferry(store, rank, {rank: how}) for rank, how in apart.items()]
    with ThreadPoolExecutor(2) as pool:
        fetching = [pool.submit(one.fetch, there) for one in ranks]
        first.serve(here, ["step-00000003", "reference/step-00000000"])
        for one in fetching:
            one.result(DEADLINE_S)
    names = sorted(str(path.relative_to(there)) for path in there.rglob("*.bin"))
    assert names == ["reference/step-00000000/a.bin", "step-00000003/a.bin"]
    assert (there / "step-00000003/a.bin").read_bytes() == (here / "step-00000003/a.bin").read_bytes()
    assert not (there / "step-00000001").exists()
    assert not (tmp_path / "untouched").exists()
