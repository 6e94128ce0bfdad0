"""A sink: a process that carries metrics.jsonl into MLflow or W&B at its own pace.

    python -P -m midflight.services.tracker.sink --kind mlflow --jsonl PATH --state PATH --run ID --project NAME ...

It reads from the offset in its state file and stores the new offset once the backend has taken a batch. So it can be
killed, stall or start late, and nothing waits for it; what it repeats after a kill is at most one batch. A byte on
stdin says that the file has grown; the end of stdin asks it to send the rest and leave. Exit status 78 means that
trying again is useless (the library is missing, or the file was replaced).
"""

import argparse
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from midflight.kernel.process import processes, signal_process, wait_process
from midflight.kernel.rundir.files import atomic_write

from .jsonl import Batch, read_from
from .sink_process import GIVE_UP

FLUSH_S = 10.0  # seconds that records wait for their batch to fill
KINDS = ("mlflow", "wandb")
NICE = 10
"""Backends may lag; training goes first."""
HELPER_S = 5.0  # seconds that what a killed predecessor left behind may go on writing


@dataclass(slots=True)
class State:
    """What a sink remembers: bytes of the file taken by the backend, the backend's run, how midflight's run ended.

    helpers: (pid, started) of its child processes, which write for it and may outlive it.
    """

    offset: int = 0
    run_id: str = ""
    status: str = ""
    helpers: list[list[int]] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> "State":
        """Read the state; a new one if there is no file."""
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def save(self, path: Path) -> None:
        """Replace the file, durably."""
        atomic_write(path, json.dumps(asdict(self)).encode())


class Sink(Protocol):
    """A backend with a run open in it."""

    @property
    def run_id(self) -> str:
        """The backend's name of the run, to find it again after a restart."""
        ...

    @property
    def steps_per_batch(self) -> int:
        """How many steps are worth one request."""
        ...

    def taken(self) -> int | None:
        """The offset up to which the backend has everything, if it can tell better than the state file."""
        ...

    def accept(self, batch: Batch) -> None:
        """Send records; return once the backend has them, raise if it refuses."""
        ...

    def finish(self, status: str) -> None:
        """Close the run as "finished", "failed" or "killed"."""
        ...


Wait = Callable[[float | None], bool]
"""Waits at most so many seconds (None: for ever) for news; False once there will be none."""


def follow(jsonl: Path, state_file: Path, sink: Sink, wait: Wait, now: Callable[[], float]) -> None:
    """Feed the sink until `wait` says that the run is over, then close its run.

    Raises:
        ValueError: the file was replaced by a shorter one.
        Exception: whatever the backend raises; the batch is sent again by the next process.
    """
    state = State.load(state_file)
    state.run_id = sink.run_id
    state.helpers = [[child.pid, child.started] for child in processes() if child.parent == os.getpid()]
    if (taken := sink.taken()) is not None:
        state.offset = taken
    state.save(state_file)
    open_, due = True, None
    while True:
        batch = read_from(jsonl, state.offset)
        full = batch.more or _steps(batch) >= sink.steps_per_batch
        if batch.end > state.offset and (full or not open_ or (due is not None and now() >= due)):
            sink.accept(batch)
            state.offset, due = batch.end, None
            state.status = _status(batch, state.status)
            state.save(state_file)
            continue
        if not open_:
            break
        if batch.end > state.offset and due is None:
            due = now() + FLUSH_S
        open_ = wait(None if due is None else max(0.0, due - now()))
    sink.finish(state.status or "killed")


def _steps(batch: Batch) -> int:
    return len({record.get("step") for record in batch.records})


def _status(batch: Batch, status: str) -> str:
    """Take the run's end from its `end` event; metrics after it mean that the run goes on."""
    for record in batch.records:
        if record.get("event") == "end":
            values = record.get("values")
            status = str(values.get("status", "finished")) if isinstance(values, dict) else "finished"
        elif "event" not in record:
            status = ""
    return status


def outlast(helpers: list[list[int]]) -> None:
    """Wait for what a killed sink left behind, so that only one process writes for a run; end what does not leave."""
    for pid, started in helpers:
        if not wait_process(pid, started, HELPER_S):
            signal_process(pid, started, signal.SIGKILL)
            wait_process(pid, started, HELPER_S)


def doorbell(fd: int) -> Wait:
    """Wait on a pipe that the tracker writes bytes to, and whose end is the end of the run."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)

    def wait(seconds: float | None) -> bool:
        return not poller.poll(None if seconds is None else seconds * 1000) or bool(os.read(fd, 1 << 16))

    return wait


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="midflight.services.tracker.sink", description="feed a metrics backend")
    parser.add_argument("--kind", required=True, choices=KINDS)
    parser.add_argument("--jsonl", required=True, type=Path)
    parser.add_argument("--state", required=True, type=Path)
    parser.add_argument("--run", required=True, help="id of the midflight run")
    parser.add_argument("--project", default="midflight", help="MLflow experiment or W&B project")
    parser.add_argument("--uri", default="", help="MLflow tracking URI")
    parser.add_argument("--dir", default=".", help="folder for W&B files")
    parser.add_argument("--mode", default="offline", choices=("offline", "online"), help="W&B mode")
    return parser.parse_args(argv)


def open_sink(args: argparse.Namespace, run_id: str) -> Sink:
    """Open the backend. Raises ImportError if its library is not installed."""
    if args.kind == "mlflow":
        from .sinks_mlflow import MlflowSink

        return MlflowSink(args.uri, args.project, args.run, run_id)
    from .sinks_wandb import WandbSink

    return WandbSink(args.dir, args.project, args.run, args.mode)


def main(argv: list[str]) -> int:
    """Run the sink; return the exit status."""
    args = parse(argv)
    os.nice(NICE)
    lock = open(f"{args.state}.lock", "wb")  # noqa: SIM115 - held until the process ends
    fcntl.flock(lock, fcntl.LOCK_EX)  # a predecessor that still flushes goes first
    former = State.load(args.state)
    outlast(former.helpers)
    try:
        sink = open_sink(args, former.run_id)
    except ImportError as error:
        sys.stderr.write(f"{args.kind} sink: {error} - install it, or remove {args.kind} from the tracker's sinks\n")
        return GIVE_UP
    try:
        follow(args.jsonl, args.state, sink, doorbell(sys.stdin.fileno()), time.monotonic)
    except ValueError as error:
        sys.stderr.write(f"{args.kind} sink: {error} - remove {args.state} to send it from the start\n")
        return GIVE_UP
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
