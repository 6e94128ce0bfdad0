"""Saves in a thread of their own, while training goes on: one at a time.

What is saved must be a copy, made before. The thread is a daemon: a process that has to leave does not wait for a disk.
"""

import contextlib
import os
import threading
from collections.abc import Collection, Mapping
from concurrent.futures import Future, wait
from copy import deepcopy
from pathlib import Path
from typing import Any

from .checkpoint import Manifest
from .reports import Reports
from .saving import WRITE_S, Share, save


class Saver:
    """Of one rank; all ranks of a group start the same saves in the same order. done: readable when one has ended."""

    def __init__(self, reports: Reports | None = None) -> None:
        self.reports = reports
        self.done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.there: Collection[str] = ()
        """Names of the checkpoints that were there at the start; see `prune`."""
        self._future: Future[Manifest | None] | None = None

    def start(self, root: Path, step: int, share: Share, extra: Mapping[str, Any], keep: int) -> None:
        """Begin a save, once the one before has ended. Raises what that one raised, if nobody has taken it."""
        self.take()
        future = self._future = Future[Manifest | None]()
        arguments = (root, step, share, deepcopy(dict(extra)), keep, self.reports, self.there)
        threading.Thread(target=self._run, args=(future, *arguments), name="checkpoint", daemon=True).start()

    def _run(self, future: Future[Manifest | None], *arguments: Any) -> None:
        try:
            future.set_result(save(*arguments))
        except BaseException as error:  # raised where the save was asked for
            future.set_exception(error)
        os.eventfd_write(self.done, 1)

    @property
    def place(self) -> tuple[int, int]:
        """Rank and number of ranks of the group."""
        return (self.reports.rank, self.reports.world) if self.reports else (0, 1)

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._future is not None and not self._future.done()

    def settle(self, within_s: float = WRITE_S) -> None:
        """Wait for the end of a save. Raises RuntimeError when it does not come in time."""
        if self._future and wait([self._future], within_s).not_done:
            raise RuntimeError("a checkpoint is still not on disk: is the file system of the run directory stuck?")

    def take(self, within_s: float = WRITE_S) -> Manifest | None:
        """The outcome of the save that was started, once; waited for. None: there is none, or on another rank.

        Raises what the save raised: CheckpointError for a disk that refuses; RuntimeError for what does not answer.
        """
        self.settle(within_s)
        future, self._future = self._future, None
        return future.result() if future else None

    def heard(self) -> None:
        """`done` was seen."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.done)
