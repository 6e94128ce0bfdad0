"""midflight join TICKET: run this host's ranks of a learner that is spread over several hosts.

TICKET is the file that the run on the first host writes (RUN/learner.ticket), or a copy of it; it is waited for. The
command stays for the whole run: when the group begins again, ranks of the new one are started by themselves. Under
torchrun each process brings one rank. See docs/parallelism.md.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from .common import count, duration

WAIT_S = 600.0


def options(parser: argparse.ArgumentParser) -> None:
    """The ticket, and how many ranks."""
    parser.add_argument("ticket", type=Path, metavar="TICKET", help="address and key of the learner's group")
    parser.add_argument(
        "--ranks", type=count, default=0, metavar="N", help="ranks to run here (default: an even share)"
    )
    parser.add_argument(
        "--dir", type=Path, help="folder of the ranks (default: the run directory if it is seen, else runs/ID.rank-R)"
    )
    parser.add_argument(
        "--wait", type=duration, default=WAIT_S, metavar="S", help="longest wait for ticket and learner (default 600)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Stay until the run is over."""
    return stay(arguments.ticket, arguments.ranks, arguments.dir, arguments.wait)


def stay(ticket: Path, ranks: int = 0, folder: Path | None = None, wait_s: float = WAIT_S) -> int:
    """Be this host's part of the group; -> exit code."""
    # By name: the kernel does not depend on services.
    joining = import_module("midflight.services.learner.group.join")
    code: int = joining.join(ticket, ranks, folder, wait_s, say)
    return code


def say(text: str) -> None:
    """To people."""
    print(f"midflight join: {text}", file=sys.stderr, flush=True)
