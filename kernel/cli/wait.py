"""midflight wait --for GOAL: return when a run has come so far; exit 5 when it takes too long, 1 when it never will."""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial

from midflight.kernel.client import Client, Unreachable
from midflight.kernel.instance import UP
from midflight.kernel.journal_files import newest_place
from midflight.kernel.rundir.directory import RunDir
from midflight.kernel.watching import follow
from midflight.messages.control import Status, StatusGet
from midflight.messages.events import Event

from .common import chosen_run, print_json, run_option
from .ending import outcome
from .exits import FAILED, OK, TIMED_OUT, USAGE, Stop

Events = Callable[[int], Iterator[Event]]
"""Number -> what comes after it."""


def options(parser: argparse.ArgumentParser) -> None:
    """What for, and how long."""
    run_option(parser)
    parser.add_argument(
        "--for",
        dest="goal",
        required=True,
        metavar="GOAL",
        help="step=N: trained so far; ready: every service is up; done: over and well; drained: over, nothing cut off",
    )
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="longest wait, seconds; default: as long as it takes"
    )


def run(arguments: argparse.Namespace) -> int:
    """Follow the run's events until one of them says so."""
    goal = str(arguments.goal)
    step = _step(goal)
    folder = chosen_run(arguments, live=False)
    until = None if arguments.timeout is None else time.monotonic() + arguments.timeout
    try:
        with Client(folder.path) as client:
            events = partial(_events, client, until)
            if step is not None:
                reached = _trained(folder, events, step)
            elif goal == "ready":
                reached = _ready(client, events)
            else:
                reached = _over(events, cut_off=goal == "done")
    except TimeoutError:
        raise Stop(TIMED_OUT, f"not {goal} after {arguments.timeout:g} s") from None
    if not reached:
        raise Stop(FAILED, f"{folder.path}: the run is over and was not {goal}")
    if arguments.json:
        print_json({"run": str(folder.path), "reached": goal})
    return OK


def _step(goal: str) -> int | None:
    """N of `step=N`. Raises Stop for what is no goal."""
    name, _, number = goal.partition("=")
    if name == "step" and number.isdecimal():
        return int(number)
    if goal not in ("ready", "done", "drained"):
        raise Stop(USAGE, f"--for {goal!r}: want step=N, ready, done or drained")
    return None


def _events(client: Client, until: float | None, after: int) -> Iterator[Event]:
    return follow(client, after, None if until is None else until - time.monotonic())


def _trained(folder: RunDir, events: Events, step: int) -> bool:
    """Steps of before are in the journal, those to come in the stream."""
    now = newest_place(folder.path)
    if now.step >= step:
        return True
    return any(event.topic == "metrics" and (event.step or 0) >= step for event in events(now.seq))


def _ready(client: Client, events: Events) -> bool:
    """The kernel is asked whenever the state of a service has changed."""
    asked = 0
    for event in events(0):
        if event.seq > asked and event.topic in ("kernel.boot", "service.state"):
            try:
                status = client.ask("ctl", StatusGet()).message
            except Unreachable:
                continue
            assert isinstance(status, Status)
            asked = status.seq
            services = [one for one in status.services if not one.attached]
            if services and all(one.state in UP for one in services):
                return True
    return False


def _over(events: Events, cut_off: bool) -> bool:
    """To the end; whether that was a good one. `cut_off`: also one that left work unfinished."""
    end = outcome((event.topic, event.body) for event in events(0))
    return end.code == 0 if cut_off else end.drained
