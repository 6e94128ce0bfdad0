"""What the ranks of a group tell the first one of a save, over the group's store.

A store of its own connection, so that a thread may wait here while another trains; no collective is used, so nothing
comes between those of training. Ranks save in the same order, and number the saves alike.
"""

import json
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store

from .durable import Chunk
from .ferry import receive, send

Report = dict[str, Any]


class Reports:
    """One rank's side. store: of this object alone."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self._store = store
        self._number = 0

    def begin(self) -> None:
        """Another save."""
        self._number += 1

    def announce(self, folder: str) -> None:
        """The first rank: where to write. Empty: nowhere, and no report is expected."""
        self._store.set(self._key("folder"), folder)

    def announced(self, within_s: float) -> str:
        """The others: what the first rank announced. Raises RuntimeError when it does not in time."""
        self._store.wait([self._key("folder")], timedelta(seconds=within_s))
        return self._store.get(self._key("folder")).decode()

    def tell(self, report: Report) -> None:
        """The others: how it went, or what will be sent; once a save."""
        self._store.set(self._key(self.rank), json.dumps(report, allow_nan=False))

    def gather(self, within_s: float) -> list[Report]:
        """The first rank: what each of the others tells, in order. Raises RuntimeError naming those who do not."""
        keys = {rank: self._key(rank) for rank in range(1, self.world)}
        try:
            self._store.wait(list(keys.values()), timedelta(seconds=within_s))
        except RuntimeError as error:
            late = [str(rank) for rank, key in keys.items() if not self._store.check([key])]
            raise RuntimeError(f"no word of rank {', '.join(late)} within {within_s:.0f} s of a checkpoint") from error
        reports: list[Report] = [json.loads(self._store.get(key)) for key in keys.values()]
        for key in (*keys.values(), self._key("folder")):
            self._store.delete_key(key)
        return reports

    def send(self, name: str, chunks: Iterable[Chunk]) -> None:
        """The others: a file that cannot be written where the first rank sees it."""
        send(self._store, self._key(f"{self.rank} {name}"), chunks)

    def receive(self, rank: int, name: str) -> Iterator[bytes]:
        """The first rank: what another one sends."""
        return receive(self._store, self._key(f"{rank} {name}"))

    def _key(self, what: str | int) -> str:
        return f"{self._number} {what}"
