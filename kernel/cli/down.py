"""midflight down: end a run and wait until it is over; exit 1, with the reason, when it did not end as asked."""

import argparse
import signal
from typing import Final, Literal

from midflight.kernel.client import Client, Unreachable
from midflight.kernel.journal_files import newest_place, read_events
from midflight.kernel.process import kill_marked, signal_process, wait_process
from midflight.kernel.rundir.directory import RunDir
from midflight.messages.control import RunStop

from .common import chosen_run, print_json, run_option
from .ending import outcome
from .exits import FAILED, OK, TIMED_OUT, Stop

KILL_S: Final = 10.0
"""Time that --kill gives the run to end in order, seconds."""


def options(parser: argparse.ArgumentParser) -> None:
    """How hard, and how long to wait."""
    run_option(parser)
    parser.add_argument("--now", action="store_true", help="stop without finishing the work in hand")
    parser.add_argument("--kill", action="store_true", help="SIGKILL everything")
    parser.add_argument("--timeout", type=float, default=120.0, help="longest wait for the end, seconds (default 120)")


def run(arguments: argparse.Namespace) -> int:
    """Ask the kernel to stop, then wait for the warden's death."""
    folder = chosen_run(arguments)
    warden, started = folder.lock.holder()
    newest = newest_place(folder.path).seq  # which may be its end already
    mode: Literal["drain", "stop", "kill"] = "kill" if arguments.kill else "stop" if arguments.now else "drain"
    try:
        with Client(folder.path) as client:
            client.ask("ctl", RunStop(mode=mode, why="midflight down"))
    except Unreachable:
        if not arguments.kill:
            raise
    if not wait_process(warden, started, KILL_S if arguments.kill else arguments.timeout):
        if not arguments.kill:
            raise Stop(TIMED_OUT, f"still running after {arguments.timeout:g} s; --now or --kill is harsher")
        _kill(folder, warden, started)
    end = outcome((one["topic"], one["body"]) for one in read_events(folder.path, after=newest - 1))
    if arguments.json:
        print_json({"run": str(folder.path), "mode": mode, "code": end.code, "why": end.why})
    if (mode == "drain" and not end.drained) or (mode == "stop" and end.code != 0):
        how = f"was told to {end.mode}" if end.code == 0 else "failed"
        raise Stop(FAILED, f"{folder.path}: the run is over, but {how}: {end.why}")
    if not arguments.json:
        print(f"ended ({mode}): {folder.path}")
    return OK


def _kill(folder: RunDir, warden: int, started: int) -> None:
    """Nobody answers: end the warden, with which everything ends, and whatever else bears the run's mark."""
    info = folder.info()
    signal_process(warden, started, signal.SIGKILL)
    if info:
        kill_marked(info.run_id)
    if not wait_process(warden, started, KILL_S):
        raise Stop(TIMED_OUT, f"process {warden} survived SIGKILL; /proc/{warden}/stack may say where it hangs")
