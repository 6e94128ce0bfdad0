"""midflight models ls|verify|export [RUN]: the checkpoints of a run, and a model for other programs made from one.

STEP is an RL training step, a name that `midflight models ls` shows, or `newest`. Also for runs that are over.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from midflight.kernel.mistake import UserMistake
from midflight.kernel.rundir.directory import RunDir
from midflight.kernel.rundir.find import find_run

from .common import print_json, table
from .exits import FAILED, NO_RUN, OK, Stop

ACTIONS = {
    "ls": "the checkpoints, newest first; every byte is read and hashed",
    "verify": "read and hash everything; exit 1 when anything is not as it was written, and say which file",
    "export": "write a Hugging Face folder that transformers and SGLang load",
}
HEAD = ["CHECKPOINT", "STAGE", "STEP", "VERSION", "SAVED", "SIZE", "DIGEST", "VERIFIED"]
STEP = "an RL step, a name of `ls`, or newest"


def options(parser: argparse.ArgumentParser) -> None:
    """One of three actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in ACTIONS.items():
        one = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.add_argument("run", nargs="?", metavar="RUN", help="name or directory; default $MIDFLIGHT_RUN, the newest")
        one.add_argument("--json", action="store_true", help="one JSON object on stdout")
        if name == "verify":
            one.add_argument("step", nargs="?", metavar="STEP", help=f"{STEP}; default every checkpoint")
        if name == "export":
            one.add_argument(
                "--out", type=Path, required=True, metavar="DIR", help="a folder that is empty or not there"
            )
            one.add_argument("--step", default="newest", metavar="STEP", help=f"{STEP} (default)")
            one.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: the checkpoint's own")


def run(arguments: argparse.Namespace) -> int:
    """Read the run's folder; nothing is asked of the run."""
    folder = find_run(arguments.run, live=False)
    actions: dict[str, Callable[[RunDir, argparse.Namespace], int]] = {"ls": _ls, "verify": _verify, "export": _export}
    return actions[arguments.action](folder, arguments)


def _ls(folder: RunDir, arguments: argparse.Namespace) -> int:
    found = _shelf().looks(folder.checkpoints)
    if arguments.json:
        print_json([_plain(one) for one in found])
    elif found:
        print(table([HEAD, *(_row(one) for one in found)]))
    else:
        raise Stop(NO_RUN, f"{folder.checkpoints}: no checkpoint yet")
    return OK


def _verify(folder: RunDir, arguments: argparse.Namespace) -> int:
    shelf = _shelf()
    if arguments.step is None:
        found = shelf.looks(folder.checkpoints)
    else:
        found = [one for one in (shelf.look(shelf.find(folder.checkpoints, arguments.step)),) if one is not None]
    if not found:
        raise Stop(NO_RUN, f"{folder.checkpoints}: no checkpoint here")
    if arguments.json:
        print_json([_plain(one) for one in found])
    else:
        for one in found:
            print(f"{one.path.name}: {one.wrong or f'every byte is as it was written, digest {one.digest}'}")
    return FAILED if any(one.wrong for one in found) else OK


def _export(folder: RunDir, arguments: argparse.Namespace) -> int:
    # By name: the kernel does not depend on services. Before a checkpoint is chosen: a live run deletes old ones.
    export = import_module("midflight.services.learner.checkpoints.export")
    done = None
    while done is None:
        path = _shelf().find(folder.checkpoints, arguments.step)
        try:
            done = export.export(folder, path, arguments.out, arguments.dtype)
        except UserMistake:
            if os.path.lexists(path):
                raise
            if arguments.step != "newest":
                raise Stop(FAILED, f"{path}: the run has just deleted it, for it keeps newer ones") from None
    if arguments.json:
        print_json({**asdict(done), "out": str(done.out)})
    else:
        print(f"{done.out}: step {done.step} of {done.run}, {done.parameters:,} parameters, {done.dtype}")
    return OK


def _shelf() -> Any:
    return import_module("midflight.services.learner.checkpoints.shelf")


def _plain(one: Any) -> dict[str, Any]:
    return {**asdict(one), "path": str(one.path), "verified": not one.wrong}


def _row(one: Any) -> list[str]:
    saved = datetime.fromtimestamp(one.saved_s).strftime("%Y-%m-%d %H:%M:%S")
    told = ["-" if value is None else str(value) for value in (one.stage, one.step, one.version)]
    return [one.path.name, *told, saved, _size(one.size), (one.digest or "-")[:12], one.wrong or "yes"]


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if count < 100 else f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
