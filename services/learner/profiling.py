"""What a rank's memory is used for while it trains: a timeline, and the allocations of some steps on a GPU.

    RUN/profile/memory-rank-0.jsonl     a line each `profile_interval` seconds
    RUN/profile/snapshot-rank-0.json    of the first `memory_snapshot` steps of a process

JSON, so nothing that is read back can run. A line, bytes: `{"t": 12.0, "step": 3, "phase": "train", "resident":
811008000, "peak": 905969664}`; on a GPU also `allocated` and `reserved`. t: seconds since the trainer began. peak: the
most resident memory of the process so far.
"""

import json
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

ENTRIES = 50_000
"""Newest allocations that a snapshot holds, each with its stack: some kilobytes of JSON."""


class Profile:
    """Of one rank. interval: seconds between lines, none without. steps: how many of them a snapshot spans, 0 for none.

    Raises ValueError when there is no GPU to take a snapshot of.
    """

    def __init__(self, folder: Path, rank: int, device: torch.device, interval: float | None, steps: int) -> None:
        if steps and device.type != "cuda":
            raise ValueError(
                f"memory_snapshot is of a GPU's memory, and this is {device}: set profile_interval instead"
            )
        self.step = 0
        self._device, self._left, self._recording = device, steps, False
        self._phase = "idle"
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._timeline, self._snapshot = (folder / f"{stem}-rank-{rank}" for stem in ("memory", "snapshot"))
        if interval or steps:
            folder.mkdir(exist_ok=True)
        if interval:
            threading.Thread(target=self._watch, args=(interval,), name="profile", daemon=True).start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What the process does meanwhile."""
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    @contextmanager
    def training(self, step: int) -> Iterator[None]:
        """A step, one of those that a snapshot spans as long as there are any left."""
        self.step = step
        if not self._left:
            with self.phase("train"):
                yield
            return
        if not self._recording:
            torch.cuda.memory._record_memory_history(max_entries=ENTRIES, stacks="python")
            self._recording = True
        with self.phase("train"):
            yield
        self._left -= 1
        if not self._left:
            taken = torch.cuda.memory._snapshot()
            torch.cuda.memory._record_memory_history(enabled=None)
            write_whole(self._snapshot.with_suffix(".json"), taken)

    def close(self) -> None:
        """No more lines."""
        self._ended.set()

    def line(self) -> dict[str, Any]:
        """What is to be said now."""
        resident = psutil.Process().memory_info().rss
        found = {
            "t": round(time.monotonic() - self._began, 3),
            "step": self.step,
            "phase": self._phase,
            "resident": resident,
            "peak": max(resident, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),  # which lags a little
        }
        if self._device.type == "cuda":
            found["allocated"] = torch.cuda.memory_allocated(self._device)
            found["reserved"] = torch.cuda.memory_reserved(self._device)
        return found

    def _watch(self, interval: float) -> None:
        with self._timeline.with_suffix(".jsonl").open("a", buffering=1) as file:
            while not self._ended.wait(interval):
                file.write(json.dumps(self.line()) + "\n")


def write_whole(path: Path, value: Any) -> None:
    """As JSON; who reads it never finds a part."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    with draft.open("w") as file:
        json.dump(value, file, default=str)
    draft.rename(path)
