"""midflight down: end a run and wait until it is over."""

import argparse
from typing import Literal

from midflight.kernel.client import Client
from midflight.kernel.process import wait_process
from midflight.messages.control import RunStop

from .common import chosen_run, print_json, run_option
from .exits import TIMED_OUT, Stop


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
    mode: Literal["drain", "stop", "kill"] = "kill" if arguments.kill else "stop" if arguments.now else "drain"
    with Client(folder.path) as client:
        client.ask("ctl", RunStop(mode=mode, why="midflight down"))
    if not wait_process(warden, started, arguments.timeout):
        raise Stop(TIMED_OUT, f"still running after {arguments.timeout:g} s; --now or --kill is harsher")
    if arguments.json:
        print_json({"run": str(folder.path), "mode": mode})
    else:
        print(f"ended ({mode}): {folder.path}")
    return 0
