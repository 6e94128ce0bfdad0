"""midflight metrics [NAME...]: what was measured, a line a training step; of a run that lives or is over."""

import argparse
import sys
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from midflight.kernel.client import Client
from midflight.kernel.journal_files import newest_place, read_events
from midflight.kernel.rundir.directory import RunDir
from midflight.kernel.watching import follow

from .common import chosen_run, print_json, printable, run_option
from .exits import FAILED, OK, Stop

TOPICS = frozenset({"metrics", "evaluation"})
USUAL = ("reward_mean", "objective/*", "loss", "kl", "entropy", "lag_mean", "eval/*")
"""What is shown when nothing is named."""
WIDTH = 12
Event = dict[str, Any]


def options(parser: argparse.ArgumentParser) -> None:
    """Which metrics, how many, and whether to follow."""
    run_option(parser)
    parser.add_argument("names", nargs="*", metavar="NAME", help="e.g. kl or 'reward*'; with --json default all")
    parser.add_argument("--last", type=int, default=20, metavar="N", help="newest N lines (default 20; 0: all)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with the run until it is over")


def run(arguments: argparse.Namespace) -> int:
    """Print the past from the journal, then what happens."""
    folder = chosen_run(arguments, live=False)
    now = newest_place(folder.path).seq
    rows = [event for event in _past(folder, arguments) if event["seq"] <= now]
    if not rows and not arguments.follow:
        raise Stop(FAILED, f"{folder.path}: nothing was measured{_of(arguments.names, folder)}")
    columns = _print(rows, [], arguments)
    if arguments.follow:
        with Client(folder.path) as client:
            for one in follow(client, now):
                event = one.model_dump()
                if one.topic in TOPICS and _shown(event, arguments.names):
                    columns = _print([event], columns, arguments)
    return OK


def _past(folder: RunDir, arguments: argparse.Namespace) -> Iterable[Event]:
    """The newest rows; when they are not all among the newest steps, all steps are read."""
    last = arguments.last
    if last <= 0:
        return _rows(folder, None, arguments.names)
    found = deque(_rows(folder, newest_place(folder.path).step - last, arguments.names), maxlen=last)
    return found if len(found) == last else deque(_rows(folder, None, arguments.names), maxlen=last)


def _rows(folder: RunDir, from_step: int | None, names: list[str]) -> Iterator[Event]:
    events = read_events(folder.path, topics=TOPICS, from_step=from_step)
    return (event for event in events if _shown(event, names))


def _of(names: list[str], folder: RunDir) -> str:
    """What was asked for, and what there is instead."""
    known = {name for event in _rows(folder, None, []) for name in event["body"]}
    return f" of {', '.join(names)}{instead(names, known)}" if names and known else ""


def instead(names: Iterable[str], known: Collection[str]) -> str:
    """The names that end with those that were asked for, as `eval/greedy` with `greedy`; else all there are."""
    meant = sorted(one for one in known for name in names if one.endswith(f"/{name}"))
    return f"; did you mean {' or '.join(meant)}?" if meant else f"; there are: {', '.join(sorted(known))}"


def _shown(event: Event, names: list[str]) -> bool:
    return not names or bool(_matching(event, names))


def _matching(event: Event, names: Iterable[str]) -> list[str]:
    """The names in the order they were given, those with wildcards as what they match."""
    return list(dict.fromkeys(one for name in names for one in event["body"] if fnmatchcase(one, name)))


def _print(events: list[Event], columns: list[str], arguments: argparse.Namespace) -> list[str]:
    """Print, under a head when there was none; -> the columns from now on."""
    if arguments.json:
        for event in events:
            values = {name: event["body"][name] for name in _matching(event, arguments.names or ["*"])}
            print_json({key: event[key] for key in ("seq", "ns", "step", "topic")} | {"values": values})
        sys.stdout.flush()
        return columns
    if not columns and events:
        wanted = arguments.names or USUAL
        columns = list(dict.fromkeys(one for name in wanted for event in events for one in _matching(event, [name])))
        print("    step" + "".join(f"  {name:>{WIDTH}}" for name in columns))
    for event in events:
        cells = "".join(f"  {_cell(event['body'].get(name)):>{max(WIDTH, len(name))}}" for name in columns)
        print(f"{'-' if event['step'] is None else event['step']:>8}{cells}", flush=True)
    return columns


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "-" if value is None else printable(str(value))[:WIDTH]
