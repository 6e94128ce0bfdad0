"""What `midflight up -d` still waits for: the ticket by which the other hosts of a run join it."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

from midflight.kernel.config import Loaded
from midflight.kernel.launch import Launched
from midflight.kernel.mistake import EXIT_MISTAKE

from .exits import FAILED, USAGE, Stop
from .postmortem import last_words

WAIT_S = 120.0
"""Longest wait for the ticket, which is written once torch is loaded."""
LOOK_S = 0.1


def join_by(loaded: Loaded, launched: Launched, wait_s: float = WAIT_S) -> dict[str, str]:
    """Wait for the ticket and say on stderr how other hosts join; -> the command under `join`, or nothing.

    Raises Stop when the run ends before.
    """
    ticket = _ticket(loaded, launched.run_dir.path)
    if not ticket:
        return {}
    there = _there(ticket, launched.warden, wait_s)
    if not there and (code := launched.warden.poll()) is not None:
        raise Stop(
            USAGE if code == EXIT_MISTAKE else FAILED,
            f"the run ended before other hosts could join\n{last_words(launched.run_dir.logs, [])}",
        )
    command = shlex.join(["midflight", "join", str(ticket)])
    when = "" if there else f" once the ticket is there, which it was not within {wait_s:g} s"
    print(f"on each other host run{when}: {command} (or a copy of it)", file=sys.stderr)
    return {"join": command}


def _ticket(loaded: Loaded, run_dir: Path) -> Path | None:
    """Of the service that is spread over hosts."""
    for slot, spec in loaded.topology.services.items():
        if getattr(spec, "hosts", 1) > 1:
            return Path(getattr(spec, "ticket", None) or run_dir / f"{slot}.ticket")
    return None


def _there(ticket: Path, warden: "subprocess.Popen[bytes]", wait_s: float) -> bool:
    """Wait until the ticket is there, the run is over, or the time is up; -> whether it is there."""
    deadline = time.monotonic() + wait_s
    while not ticket.exists() and time.monotonic() < deadline:
        try:
            warden.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            continue
        break
    return ticket.exists()
