"""midflight logs [SERVICE...]: the services' structured logs, merged by time; raw output where there is no log."""

import argparse
import json
import os
import re
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .common import chosen_run, run_option
from .exits import USAGE, Stop

COLOURS = (36, 33, 32, 35, 34, 31)


def options(parser: argparse.ArgumentParser) -> None:
    """Which services, which lines, and whether to follow."""
    run_option(parser)
    parser.add_argument("services", nargs="*", help="names, e.g. learner rollout-0; default all")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    parser.add_argument("--grep", metavar="RE", help="only lines that match")
    parser.add_argument("--raw", action="store_true", help="what the processes printed, instead of their logs")


def run(arguments: argparse.Namespace) -> int:
    """Print, and follow if asked."""
    folder = chosen_run(arguments, live=False)
    known = {path.name.split(".")[0] for path in folder.logs.iterdir()}
    for name in arguments.services:
        if name not in known:
            raise Stop(USAGE, f"no service {name!r} in this run; there are: {', '.join(sorted(known))}")
    wanted = _pattern(arguments.grep)
    offsets: dict[int, int] = {}
    while True:
        records = sorted(_new(folder.logs, arguments, offsets), key=lambda record: record[0])
        for _, line, plain in records:
            if wanted is None or wanted.search(plain):
                print(line, flush=True)
        if not arguments.follow:
            return 0
        select.select([], [], [], 0.3)


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise Stop(USAGE, f"--grep {text!r} is no regular expression: {error}") from None


def _new(logs: Path, arguments: argparse.Namespace, offsets: dict[int, int]) -> Iterator[tuple[str, str, str]]:
    """(sort key, line to print, line to match) of everything since the last call; torn last lines wait."""
    for path in sorted(logs.glob("*.out" if arguments.raw else "*.jsonl")):
        service = path.name.split(".")[0]
        if arguments.services and service not in arguments.services:
            continue
        with path.open("rb") as file:
            known = os.fstat(file.fileno()).st_ino  # a rotated file keeps its number under its new name
            file.seek(offsets.get(known, 0))
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        offsets[known] = offsets.get(known, 0) + len(whole)
        for line in whole.decode(errors="replace").splitlines():
            yield _raw(service, line) if arguments.raw else _record(service, line, arguments.json)


def _raw(service: str, line: str) -> tuple[str, str, str]:
    return service, f"{_paint(service)} {line}", line


def _record(service: str, line: str, as_json: bool) -> tuple[str, str, str]:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        return "", f"{_paint(service)} {line}", line
    when = str(record.pop("timestamp", ""))
    if as_json:
        return when, line, line
    level, event = str(record.pop("level", "")), str(record.pop("event", ""))
    trace = record.pop("exception", "")
    for known in ("run", "service"):
        record.pop(known, None)
    rest = " ".join(f"{key}={value}" for key, value in record.items())
    text = f"{when[11:23]} {_paint(service)} {level:7} {event} {rest}{chr(10) + trace if trace else ''}"
    return when, text, line


def _paint(service: str) -> str:
    name = f"{service:12}"
    if os.environ.get("NO_COLOR") or not sys.stdout.isatty():
        return name
    return f"\x1b[{COLOURS[sum(map(ord, service)) % len(COLOURS)]}m{name}\x1b[0m"
