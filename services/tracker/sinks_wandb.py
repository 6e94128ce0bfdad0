"""Weights & Biases as a sink, offline unless asked otherwise.

Each service has its own step axis, `service/step`, logged as a value: W&B drops rows that go back in its global step,
and services do not advance together. Every process of this sink writes a part of its own; parts share the run's id, and
`wandb sync DIR/wandb/offline-run-*` joins them.

W&B acknowledges nothing, and a kill loses what its writer still buffered. So each row carries the offset of its line
in metrics.jsonl, and a new process reads the older parts to see how far they got: no row is lost or doubled.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import wandb

from .jsonl import Batch
from .points import parameters, points

_OFFSET = "midflight/offset"


class WandbSink:
    """One part of a W&B run.

    Raises:
        wandb.Error: the run cannot be started.
    """

    steps_per_batch = 1

    def __init__(self, folder: str, project: str, run: str, mode: Literal["offline", "online"]) -> None:
        self.run_id = run
        self._older = sorted(Path(folder).glob(f"wandb/offline-run-*-{run}/run-{run}.wandb"))
        self._offline = mode == "offline"
        settings = wandb.Settings(console="off", x_disable_stats=True, silent=True)
        self._run = wandb.init(
            project=project, id=run, name=run, dir=folder, mode=mode, resume="allow", settings=settings
        )
        self._run.define_metric(_OFFSET, hidden=True)
        self._axes: set[str] = set()

    def taken(self) -> int | None:
        """How far the older parts got; online, where the server has them, the state file must do."""
        return max((offset for part in self._older for offset in offsets(part)), default=0) if self._offline else None

    def accept(self, batch: Batch) -> None:
        """Log the records' numbers on their services' step axes, and parameters as config."""
        for record, offset in zip(batch.records, batch.offsets, strict=True):
            if params := parameters(record):
                self._run.config.update(params, allow_val_change=True)  # type: ignore[no-untyped-call]
            if row := points(record):
                self._log(row, record.get("step"), offset)

    def _log(self, row: dict[str, float], step: object, offset: int) -> None:
        axis = next(iter(row)).partition("/")[0]
        if axis not in self._axes:
            self._axes.add(axis)
            self._run.define_metric(f"{axis}/step")
            self._run.define_metric(f"{axis}/*", step_metric=f"{axis}/step")
        place = {} if step is None else {f"{axis}/step": step}
        self._run.log({**row, **place, _OFFSET: offset})

    def finish(self, status: str) -> None:
        """End this part."""
        self._run.finish(exit_code=0 if status == "finished" else 1)


def history(part: Path) -> Iterator[dict[str, object]]:
    """Yield the rows of an offline run's file as W&B's own reader sees them, also if its writer was killed."""
    argv = [sys.executable, "-P", "-m", "wandb", "leet", "inspect", "--json", str(part)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as reader:
        assert reader.stdout is not None
        for line in reader.stdout:
            entry = json.loads(line)
            if entry["type"] == "history":
                yield entry["history"]["item"]


def offsets(part: Path) -> Iterator[int]:
    """Yield the offsets of the rows in a part."""
    for row in history(part):
        if isinstance(offset := row.get(_OFFSET), int):
            yield offset
