"""midflight history [KNOB]: what was changed, by whom and why; of a run that lives or is over."""

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from textwrap import shorten

from midflight.kernel.history import Change, History
from midflight.kernel.journal_files import JournalTail
from midflight.messages.base import Scalar

from .common import chosen_run, print_json, printable, run_option, table

HEAD = ["STEP", "TIME", "WHAT", "OF", "CHANGE", "BY", "IN FORCE", "WHY"]


def options(parser: argparse.ArgumentParser) -> None:
    """Which changes."""
    run_option(parser)
    parser.add_argument("knob", nargs="?", default="", help="only knobs whose name begins so, every value by itself")
    parser.add_argument("--slot", metavar="SLOT", help="only what concerns this slot: its swaps, controllers and knobs")
    parser.add_argument("--since-step", type=int, default=0, metavar="N", help="only after N training steps")


def run(arguments: argparse.Namespace) -> int:
    """Fold the journal and print what is asked for."""
    folder = chosen_run(arguments, live=False)
    history = History()
    with JournalTail(folder.journal) as tail:
        for record in tail.read():
            history.take(record)
        damaged = tail.damaged
    changes = [change for change in history.changes if _wanted(change, arguments)]
    if arguments.json:
        shown = [{**asdict(change), "slots": sorted(change.slots)} for change in changes]
        print_json({"changes": shown, "first_event": history.first, "damaged_bytes": damaged})
        return 0
    if (history.first or 1) > 1:
        print(f"(what was before event {history.first} is no longer kept)")
    if damaged:
        print(f"(damaged and passed over: {damaged} bytes of the journal)")
    rows = [_row(group) for group in ([[c] for c in changes] if arguments.knob else condensed(changes))]
    print(table([HEAD, *rows]) if rows else "nothing was changed")
    return 0


def condensed(changes: Iterable[Change]) -> list[list[Change]]:
    """Values that one process sets again and again belong together, until something else happens to the knob."""
    out: list[list[Change]] = []
    latest: dict[str, list[Change]] = {}
    for change in changes:
        group = latest.get(change.subject)
        same = group and change.what == "set" == group[-1].what and change.by == group[-1].by and "#" in change.by
        if group is not None and same:
            group.append(change)
        else:
            latest[change.subject] = [change]
            out.append(latest[change.subject])
    return out


def _wanted(change: Change, arguments: argparse.Namespace) -> bool:
    if arguments.slot is not None and arguments.slot not in change.slots:
        return False
    is_knob = change.what in ("set", "granted", "released", "declared")
    if arguments.knob and not (is_knob and change.subject.startswith(arguments.knob)):
        return False
    return bool(max(change.step, change.since or 0) >= arguments.since_step)


def _row(group: list[Change]) -> list[str]:
    first, last = group[0], group[-1]
    many = len(group) > 1
    sinces = [change.since for change in group if change.since is not None]
    in_force = _span(sinces[0], sinces[-1]) if sinces else last.stage.replace("_", " ") or "-"
    return [
        _span(first.step, last.step),
        datetime.fromtimestamp(first.ns / 1e9).strftime("%H:%M:%S"),
        f"{first.what} x{len(group)}" if many else first.what,
        first.subject,
        f"{_value(first.old, first, 0)} -> {_value(last.new, last, 1)}",
        first.by or "-",
        in_force,
        shorten(printable(last.why), 100, placeholder=" ...") or "-",
    ]


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}..{last}"


def _value(value: Scalar, change: Change, side: int) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if change.what == "swap":
        kind = change.kinds[side]
        return f"{value or 'topology'} ({kind})" if kind else str(value or "topology")
    return "-" if value is None else str(value)
