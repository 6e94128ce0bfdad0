"""midflight replay [RUN]: the journal of a run through its controllers again, or through another one."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from midflight.kernel.code import importing_from
from midflight.kernel.compare import KnobComparison, compare
from midflight.kernel.config import ConfigError
from midflight.kernel.config.part import load_part
from midflight.kernel.journal_files import read_events
from midflight.kernel.rundir.directory import RunDir
from midflight.kernel.rundir.find import find_run
from midflight.kernel.settings import Settings

from .common import print_json, table
from .exits import FAILED, OK, USAGE, Stop


def options(parser: argparse.ArgumentParser) -> None:
    """Which run, and through what."""
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="name or directory; default $MIDFLIGHT_RUN, then the newest"
    )
    parser.add_argument("--controller", metavar="WHAT", help="another one, as of `ctl attach`; default: those it had")
    parser.add_argument(
        "--slot", help="with --controller: whose decisions it is held against; default: all of the same knobs"
    )
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="a parameter of it")
    parser.add_argument("--from-step", type=int, metavar="N", help="with --controller: begin at this training step")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="its decisions, as JSON lines")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Without --controller: exit 1 when a decision of the run is not decided again."""
    folder = find_run(arguments.run, live=False)
    data = json.loads(folder.config_json.read_text())
    # By name: the kernel does not depend on services.
    replay = import_module("midflight.services.controllers.replay")
    if arguments.controller is not None:
        return _another(folder, data, replay, arguments)
    if arguments.from_step is not None or arguments.set or arguments.output:
        raise Stop(USAGE, "--from-step, --set and --output are for another --controller")
    return _verify(folder, data, replay, arguments)


def _verify(folder: RunDir, data: dict[str, Any], replay: Any, arguments: argparse.Namespace) -> int:
    """Every controller the run had that decided anything."""
    began, verdicts = time.perf_counter(), []
    for one in replay.incarnations(read_events(folder.path)):
        if one.decisions:
            with importing_from(one.python_path):
                make = partial(_make, folder, data, one.identity.partition("#")[0], one.slot, one.params)
                verdicts.append(replay.verify(partial(read_events, folder.path), one, make))
    seconds = time.perf_counter() - began
    if arguments.json:
        rows = [asdict(verdict) for verdict in verdicts]
        print_json({"same": all(v.same for v in verdicts), "controllers": rows, "seconds": seconds})
    elif not verdicts:
        print("no controller decided in this run")
    else:
        lines = [[v.identity, v.slot, str(v.decisions), str(v.equal), v.first or "-"] for v in verdicts]
        print(table([["CONTROLLER", "SLOT", "DECISIONS", "DECIDED AGAIN", "FIRST DIFFERENCE"], *lines]))
        print(f"replayed in {seconds:.2f} s of {_lasted(folder):.1f} s")
    return OK if all(v.same for v in verdicts) else FAILED


def _another(folder: RunDir, data: dict[str, Any], replay: Any, arguments: argparse.Namespace) -> int:
    """What it would have decided, each time from the value that was in force."""
    sys.path += [path for path in data["python_path"] if path not in sys.path]
    try:
        part = load_part("replayed", arguments.controller, arguments.set, data)
    except ConfigError as error:
        raise Stop(USAGE, "\n".join(error.problems)) from None
    began, decisions = time.perf_counter(), []
    make = partial(_make, folder, data, "replayed", arguments.slot or "replayed", part.data)
    try:
        for decision in replay.replay(read_events(folder.path), make, from_step=arguments.from_step or 0):
            decisions.append(decision)
    except Exception as error:
        done = f"after {len(decisions)} decisions, at event {decisions[-1].step if decisions else 0}"
        raise Stop(FAILED, f"{arguments.controller} raised {type(error).__name__}: {error} ({done})") from error
    seconds = time.perf_counter() - began
    if arguments.output:
        lines = [json.dumps({"step": one.step, **one.values}) for one in decisions]
        arguments.output.write_text("\n".join(lines) + "\n" if lines else "")
    comparison = compare(_ruling(folder, arguments.slot), [_body(one) for one in decisions], {})
    if not comparison.knobs:
        text = f"{len(decisions)} decisions, and none of the run's to hold them against"
        raise Stop(FAILED, text + (f" in slot {arguments.slot!r}" if arguments.slot else ""))
    if arguments.json:
        knobs = [asdict(one) for one in comparison.knobs]
        print_json({"decisions": len(decisions), "seconds": seconds, "knobs": knobs})
    else:
        rows = [_row(one) for one in comparison.knobs]
        print(table([["KNOB", "STEPS", "PAIRS", "AGREE", "MEAN DIFF", "LARGEST", "FIRST DIFF"], *rows]))
        print(f"{len(decisions)} decisions in {seconds:.2f} s of {_lasted(folder):.1f} s")
    return OK


def _row(one: KnobComparison) -> list[str]:
    first = "-" if one.first_differs is None else f"step {one.first_differs}"
    steps = f"{one.first_step}..{one.last_step}"
    return [one.knob, steps, str(one.pairs), f"{one.agree:.1%}", f"{one.mean_delta:.4g}", f"{one.max_delta:.4g}", first]


def _ruling(folder: RunDir, slot: str | None) -> Iterator[dict[str, Any]]:
    """What was really decided with power, in a slot or in all."""
    for event in read_events(folder.path, topics={"controller"}):
        if slot in (None, event["body"].get("slot")) and event["body"].get("standing") == "active":
            yield event["body"]


def _body(decision: Any) -> dict[str, Any]:
    return {"at_step": decision.step, **{f"value/{knob}": value for knob, value in decision.values.items()}}


def _make(
    folder: RunDir, data: dict[str, Any], name: str, slot: str, part: dict[str, Any], identity: str, bus: Any
) -> Any:
    run = json.loads(folder.run_json.read_text())
    settings = Settings.of(folder.path, run, data, name, slot, part)
    module, _, cls = settings.entry.partition(":")
    return getattr(import_module(module), cls)(identity, bus, settings)


def _lasted(folder: RunDir) -> float:
    """Seconds from the first event to the last."""
    times = [event["ns"] for event in read_events(folder.path)]
    return (times[-1] - times[0]) / 1e9 if times else 0.0
