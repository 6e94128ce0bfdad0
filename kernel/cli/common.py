"""What several verbs share: naming a run, printing tables and JSON."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from midflight.kernel.rundir.directory import RunDir
from midflight.kernel.rundir.errors import RunNotFound
from midflight.kernel.rundir.find import find_run
from midflight.messages.base import Message

from .exits import USAGE, Stop

M = TypeVar("M", bound=Message)


def request(kind: type[M], **fields: Any) -> M:
    """A message made of what a person wrote. Raises Stop for what no run could understand."""
    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0])
        raise Stop(USAGE, f"{field} {fields[field]!r}: {first['msg']}") from None


def positive(text: str) -> int:
    """An option's whole number above zero. Raises ArgumentTypeError."""
    if not (number := count(text)):
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return number


def run_option(parser: argparse.ArgumentParser) -> None:
    """`--run`, and `--json`."""
    parser.add_argument("--run", metavar="NAME|DIR", help="which run; default $MIDFLIGHT_RUN, then the newest live one")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def chosen_run(arguments: argparse.Namespace, live: bool = True) -> RunDir:
    """The run an option names; its path goes to stderr so that a pipe stays clean."""
    run = find_run(arguments.run, live=live)
    if live and not run.is_live():
        raise RunNotFound(
            f"{run.path}: this run is over; `midflight up TOPOLOGY --resume --run-dir {run.path}` goes on"
        )
    if not arguments.json and sys.stderr.isatty():
        print(f"run {run.path}", file=sys.stderr)
    return run


def count(text: str) -> int:
    """An option's whole number, not below 0. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r}: want a whole number, 0 or more")
    return int(text)


def duration(text: str) -> float:
    """An option's seconds, not below 0. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: want seconds, 0 or more")
    return value


def print_json(data: object) -> None:
    """One object on one line."""
    print(json.dumps(data, sort_keys=True))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def seconds(value: float) -> str:
    """12.3s, 4m05s or 3h02m."""
    if value < 60:
        return f"{value:.1f}s"
    minutes = int(value // 60)
    return f"{minutes}m{int(value % 60):02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def printable(text: str) -> str:
    """Text of others on one line of a terminal: control characters shown, not obeyed."""
    return "".join(char if char.isprintable() else " " if char == "\n" else f"\\x{ord(char):02x}" for char in text)
