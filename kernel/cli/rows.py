"""midflight rows: the prompt rows of an environment of another library, as JSON lines for `ledger.data`."""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

from .exits import FAILED, OK, USAGE, Stop


def options(parser: argparse.ArgumentParser) -> None:
    """Which environment, how many rows, where to."""
    parser.add_argument("environment", metavar="ADAPTER:NAME", help="as in services.reward.environment")
    parser.add_argument("--args", metavar="JSON", default="{}", help="as in services.reward.environment_args")
    parser.add_argument("--count", type=int, metavar="N", help="the first N rows; all, or 256 of what has no end")
    parser.add_argument("--skip", type=int, metavar="N", default=0, help="rows to leave out first, for held-out ones")
    parser.add_argument("--out", metavar="FILE", help="where they are written; standard output when omitted")


def run(arguments: argparse.Namespace) -> int:
    """Run the environment's own code, as whoever asks, outside any sandbox; write one row a line."""
    environments = import_module("midflight.services.reward.environments")  # the kernel does not depend on services
    try:
        made = json.loads(arguments.args)
        environments.check(arguments.environment)
    except ValueError as error:
        raise Stop(USAGE, str(error)) from None
    sys.path.append(str(Path.cwd()))
    count = arguments.count
    try:
        rows = environments.load(arguments.environment, made).rows(count and count + arguments.skip)
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    except Exception as error:
        raise Stop(FAILED, f"{arguments.environment}: {type(error).__name__}: {error}") from error
    text = "".join(f"{line}\n" for line in lines[arguments.skip :])
    if arguments.out is None:
        sys.stdout.write(text)
    else:
        Path(arguments.out).write_text(text)
    return OK
