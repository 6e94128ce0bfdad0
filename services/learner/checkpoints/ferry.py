"""Files of checkpoints between the run directory and ranks on hosts that do not see it, over the group's store.

One block at a time: it is there when its key is, and taken when the other side says so. The first rank holds the
store, so what a block costs in memory is twice its size, there.

    apart    rank -> `fetches` (for all of its host) or `waits`; the first rank knows of all, another of itself
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import Store

from .durable import Chunk

BLOCK = 4 << 20
WAIT_S = 600.0
"""The longest that the other side may take for a block."""
MORE, END = b"+", b"."


class Ferry:
    """One rank's side, for loading; both sides must ask for the same, in the same order."""

    def __init__(self, store: Store, rank: int, apart: Mapping[int, str]) -> None:
        self._store, self._rank, self._apart = store, rank, apart
        self._number = 0

    def serve(self, root: Path, names: Iterable[str]) -> None:
        """The first rank: hand folders below `root` to every host that does not see them."""
        if not self._apart:
            return
        self._number += 1
        for rank, how in self._apart.items():
            if how == "fetches":
                self._hand_out(rank, root, names)
        self._store.set(self._key("served"), "")

    def _hand_out(self, rank: int, root: Path, names: Iterable[str]) -> None:
        files = sorted(path for name in names for path in (root / name).iterdir())
        listed = "\n".join(str(path.relative_to(root)) for path in files)
        send(self._store, self._key("files", rank), [listed.encode()])
        for at, path in enumerate(files):
            send(self._store, self._key(at, rank), blocks(path))

    def fetch(self, root: Path) -> None:
        """Another rank: what the first one hands out is below `root`, when this returns; nothing else is.

        Nothing happens on a host that sees the run directory.
        """
        how = self._apart.get(self._rank)
        if not how:
            return
        self._number += 1
        if how == "fetches":
            shutil.rmtree(root, ignore_errors=True)
            listed = b"".join(receive(self._store, self._key("files", self._rank))).decode()
            for at, name in enumerate(listed.splitlines()):
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    file.writelines(receive(self._store, self._key(at, self._rank)))
        self._store.wait([self._key("served")], timedelta(seconds=WAIT_S))

    def _key(self, what: str | int, rank: int = 0) -> str:
        return f"{self._number} {rank} {what}"


def blocks(path: Path) -> Iterator[bytes]:
    """A file's content."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def send(store: Store, name: str, chunks: Iterable[Chunk]) -> None:
    """Give chunks to whoever receives `name`. Raises RuntimeError when nobody takes them."""
    number = 0
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        for start in range(0, len(view), BLOCK):
            _give(store, f"{name} {number}", MORE + bytes(view[start : start + BLOCK]))
            number += 1
    _give(store, f"{name} {number}", END)


def receive(store: Store, name: str) -> Iterator[bytes]:
    """What is sent as `name`. Raises RuntimeError when it does not come."""
    number = 0
    while True:
        key = f"{name} {number}"
        store.wait([key], timedelta(seconds=WAIT_S))
        block = store.get(key)
        store.delete_key(key)
        store.set(f"{key} taken", "")
        if block == END:
            return
        yield block[len(MORE) :]
        number += 1


def _give(store: Store, key: str, block: Any) -> None:
    """block: bytes, which stores take, though their stubs say that they do not."""
    store.set(key, block)
    store.wait([f"{key} taken"], timedelta(seconds=WAIT_S))
    store.delete_key(f"{key} taken")
