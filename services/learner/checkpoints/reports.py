"""What the ranks of a group tell the first one of a save, over the group's store.

A store of its own connection, so that a thread may wait here while another trains; no collective is used, so nothing
comes between those of training. Ranks save in the same order, and number the saves alike.
"""

import json
from datetime import timedelta
from typing import Any, Protocol

Report = dict[str, Any]


class Store(Protocol):
    """What is used of torch.distributed's stores; a wait that ends without its keys raises a RuntimeError."""

    def set(self, key: str, value: str) -> None:
        """Give a value."""

    def get(self, key: str) -> bytes:
        """A value that is there."""

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        """Until all are there."""

    def check(self, keys: list[str]) -> bool:
        """Whether all are there."""

    def delete_key(self, key: str) -> bool:
        """Forget one."""


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
        """The others: how it went."""
        self._store.set(self._key(self.rank), json.dumps(report, allow_nan=False))

    def gather(self, within_s: float) -> list[Report]:
        """The first rank: what each of the others tells, in order. Raises RuntimeError naming those who do not."""
        keys = [self._key(rank) for rank in range(1, self.world)]
        try:
            self._store.wait(keys, timedelta(seconds=within_s))
        except RuntimeError as error:
            late = [str(rank) for rank, key in enumerate(keys, 1) if not self._store.check([key])]
            raise RuntimeError(f"no word of rank {', '.join(late)} within {within_s:.0f} s of a checkpoint") from error
        reports = [json.loads(self._store.get(key)) for key in keys]
        for key in [*keys, self._key("folder")]:
            self._store.delete_key(key)
        return reports

    def _key(self, what: str | int) -> str:
        return f"{self._number} {what}"
