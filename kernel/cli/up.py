"""midflight up TOPOLOGY: check everything, start the run, watch it, end it well.

The first Ctrl-C drains and checkpoints, the second stops without finishing the work in hand, the third kills. A run
started with -d goes on without this terminal; `midflight down` ends it. Under torchrun only rank 0 starts the run; the
other processes are its learner's ranks (docs/parallelism.md).
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from midflight.kernel import torchrun
from midflight.kernel.config import ConfigError, Loaded, load_topology
from midflight.kernel.config.shipped import shipped

from . import detached, join, resuming
from .common import print_json
from .exits import USAGE, Stop


def options(parser: argparse.ArgumentParser) -> None:
    """The topology, its overlays and overrides, and how to run it."""
    parser.add_argument("topology", help="a file, or the name of one that comes with midflight, such as demo")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="e.g. services.learner.steps=50")
    parser.add_argument("-f", "--file", action="append", default=[], metavar="OVERLAY", help="merged over the topology")
    parser.add_argument(
        "-d",
        "--detach",
        action="store_true",
        help="return as soon as the run has started, with several hosts as soon as they can join",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --run-dir (default: the newest run of that name under ./runs)",
    )
    parser.add_argument("--run-dir", type=Path, help="where the run lives (default runs/<run>-<id>)")
    parser.add_argument(
        "--json", action="store_true", help="with -d: run id, directory and how to join as one JSON object"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved topology and start nothing")


def run(arguments: argparse.Namespace) -> int:
    """Check, start, watch."""
    loaded = load(arguments.topology, arguments.file, arguments.overrides)
    if arguments.dry_run:
        print(json.dumps(loaded.data, indent=1, sort_keys=True))
        return 0
    if world := torchrun.world():
        ticket = _by_torchrun(loaded, world)
        if torchrun.rank():
            return join.stay(ticket)
        torchrun.taken()
    from midflight.kernel.launch import ResumeError, launch
    from midflight.kernel.rundir import newest_of

    folder = arguments.run_dir
    if arguments.resume and folder is None:
        folder = newest_of(loaded.topology.run).path
    try:
        launched = launch(loaded, folder, arguments.resume)
    except ResumeError as error:
        raise Stop(USAGE, str(error)) from None
    print(f"run {launched.run_id} in {launched.run_dir.path}{resuming.told(launched.differs)}", file=sys.stderr)
    if arguments.detach:
        join_by = {} if world else detached.join_by(loaded, launched)
        if arguments.json:
            print_json({"run_id": launched.run_id, "run_dir": str(launched.run_dir.path), **join_by})
        return 0
    from .watch import Watch

    watch = Watch(launched, "" if world else resuming.command(arguments, launched.run_dir.path))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, watch.interrupted)
    return watch.until_over()


def _by_torchrun(loaded: Loaded, world: int) -> Path:
    """The ticket by which those of torchrun's processes that are not rank 0 find the one that is."""
    found = [(name, spec) for name, spec in loaded.topology.services.items() if hasattr(spec, "ticket")]
    for name, spec in found:
        ranks, ticket = getattr(spec, "ranks", 1), getattr(spec, "ticket", None)
        if ranks != world:
            raise Stop(
                USAGE,
                f"torchrun has started {world} processes, and the topology says services.{name}.ranks: {ranks}: set it "
                f"to {world}, or nnodes times nproc-per-node of torchrun to {ranks}",
            )
        if not ticket:
            raise Stop(
                USAGE,
                f"torchrun has started {world} processes, which find the learner by a ticket: set "
                f"services.{name}.ticket to a file that every host sees, or has a copy of",
            )
        return Path(ticket)
    raise Stop(USAGE, "torchrun has started several processes, and nothing in this topology trains on several ranks")


def load(topology: str, overlays: list[str], overrides: list[str], elsewhere: bool = False) -> Loaded:
    """Load a topology by path or by the name of one that comes with the package. elsewhere: see `load_topology`."""
    try:
        return load_topology(find_topology(topology), overlays, overrides, elsewhere=elsewhere)
    except ConfigError as error:
        raise Stop(USAGE, mistakes(error)) from None


def mistakes(error: ConfigError) -> str:
    """All mistakes of a topology, a line each."""
    return f"{len(error.problems)} mistake(s)\n{error}"


def find_topology(name: str) -> str:
    """A path as it is; otherwise configs/NAME.yaml of the installed package."""
    if os.path.exists(name) or os.sep in name or name.endswith((".yaml", ".yml")):
        return name
    known = shipped()
    if name not in known:
        raise Stop(USAGE, f"no topology {name!r}: give a file, or one of {', '.join(known)}")
    return known[name]
