"""midflight ctl compare [SLOT]: would a shadow have steered otherwise? Of a run that lives or is over."""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from midflight.kernel.compare import Bounds, Comparison, KnobComparison, compare
from midflight.kernel.journal_files import newest_place, read_events, read_knob_table

from .common import chosen_run, print_json, run_option, table
from .exits import FAILED, OK, USAGE, Stop

HEAD = ["SLOT", "ACTIVE", "SHADOW", "KNOB", "STEPS", "PAIRS", "AGREE", "MEAN DIFF", "LARGEST", "FIRST DIFF", "OUTSIDE"]


class Compared(NamedTuple):
    """A shadow, those who steered at the time, and how far they are apart."""

    slot: str
    active: list[str]
    shadow: str
    comparison: Comparison


def options(parser: argparse.ArgumentParser) -> None:
    """Whom, and over how many steps."""
    run_option(parser)
    parser.add_argument("slot", nargs="?", metavar="SLOT", help="default: every slot with a shadow")
    parser.add_argument("--shadow", metavar="NAME", help="default: every shadow")
    parser.add_argument("--last", type=int, metavar="N", help="only the newest N training steps")


def run(arguments: argparse.Namespace) -> int:
    """Read the decisions from the journal; exit 1 when there is nothing to compare."""
    folder = chosen_run(arguments, live=False)
    if arguments.last is not None and arguments.last < 1:
        raise Stop(USAGE, f"--last {arguments.last}: want a number of training steps")
    decided = list(_decisions(folder.path, None))
    for what, given, known in (
        ("slot", arguments.slot, {body["slot"] for _, body in decided}),
        ("controller", arguments.shadow, {name for name, _ in decided}),
    ):
        if given is not None and given not in known:
            raise Stop(USAGE, f"no {what} {given!r} has decided in this run; there are: {', '.join(sorted(known))}")
    found = list(_compared(folder.path, arguments))
    if not any(one.comparison.knobs for one in found):
        raise Stop(FAILED, "no shadow decided anything at a step at which somebody steered the same knob")
    if arguments.json:
        print_json({"compared": [_plain(one) for one in found]})
    else:
        print(table([HEAD, *(_row(one, knob) for one in found for knob in one.comparison.knobs)]))
    return OK


def _compared(run_dir: Path, arguments: argparse.Namespace) -> Iterator[Compared]:
    decisions = list(_decisions(run_dir, arguments.last))
    bounds = _bounds(run_dir)
    shadows = {(body["slot"], name) for name, body in decisions if body.get("standing") != "active"}
    for slot, shadow in sorted(shadows):
        if arguments.slot not in (None, slot) or arguments.shadow not in (None, shadow):
            continue
        ours = [(name, body) for name, body in decisions if body["slot"] == slot and body.get("standing") == "active"]
        theirs = [body for name, body in decisions if name == shadow and body.get("standing") != "active"]
        comparison = compare([body for _, body in ours], theirs, bounds)
        if comparison.knobs:
            yield Compared(slot, sorted({name for name, _ in ours}), shadow, comparison)


def _decisions(run_dir: Path, last: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, body) of what controllers decided."""
    begin = None if last is None else newest_place(run_dir).step - last + 1
    for event in read_events(run_dir, topics={"controller"}, from_step=begin):
        body, step = event["body"], event["body"].get("at_step")
        if "slot" in body and isinstance(step, int) and (begin is None or step >= begin):
            yield event["source"].partition("#")[0], body


def _bounds(run_dir: Path) -> Bounds:
    return {name: (knob.spec.low, knob.spec.high) for name, knob in read_knob_table(run_dir).knobs.items()}


def _plain(one: Compared) -> dict[str, Any]:
    knobs = [asdict(knob) for knob in one.comparison.knobs]
    agree = one.comparison.agree
    return {"slot": one.slot, "active": one.active, "shadow": one.shadow, "agree": agree, "knobs": knobs}


def _row(one: Compared, knob: KnobComparison) -> list[str]:
    first = "-" if knob.first_differs is None else f"step {knob.first_differs}"
    return [
        one.slot,
        ",".join(one.active),
        one.shadow,
        knob.knob,
        f"{knob.first_step}..{knob.last_step}",
        str(knob.pairs),
        f"{knob.agree:.1%}",
        f"{knob.mean_delta:.4g}",
        f"{knob.max_delta:.4g}",
        first,
        str(knob.outside),
    ]
