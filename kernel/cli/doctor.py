"""midflight doctor: everything a run needs of the machine, each with what to do when it is missing."""

import argparse
import importlib
import importlib.metadata
import os
import platform
import resource
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from midflight.kernel.mistake import UserMistake

from .common import print_json
from .exits import FAILED, OK

Finding = tuple[str, bool, str]
"""What was looked at, whether it is fine, and what was found or what to do."""


def options(parser: argparse.ArgumentParser) -> None:
    """Nothing to choose."""
    parser.add_argument("--json", action="store_true", help="one JSON list on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Look at each; exit 1 when something a run needs is missing."""
    findings = [finding for check in CHECKS for finding in check()]
    if arguments.json:
        print_json([{"what": what, "ok": ok, "text": text} for what, ok, text in findings])
    else:
        for what, ok, text in findings:
            print(f"{'ok  ' if ok else 'FAIL'} {what:14} {text}")
    return OK if all(ok for _, ok, _ in findings) else FAILED


def system() -> Iterator[Finding]:
    """Linux and a Python new enough."""
    fine = sys.platform == "linux"
    yield "system", fine, platform.platform() if fine else "runs need Linux: use a Linux machine, a container or WSL 2"
    yield "python", sys.version_info >= (3, 11), f"{platform.python_version()} (3.11 or newer)"


def packages() -> Iterator[Finding]:
    """The packages a run cannot do without, and the torch build."""
    for name in ("torch", "transformers", "pyzmq", "msgpack", "pydantic", "structlog", "psutil"):
        try:
            yield name, True, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, False, f"missing: pip install {name}"


def processes() -> Iterator[Finding]:
    """Process handles and limits."""
    yield "pidfd", hasattr(os, "pidfd_open"), "kernel 5.3 or newer"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield "open files", soft >= 1024, f"{soft} of {hard} (ulimit -n 1024 or more)"


def memory() -> Iterator[Finding]:
    """Shared memory for weights."""
    shm = Path("/dev/shm")  # noqa: S108 (looked at, not written to)
    if not os.access(shm, os.W_OK):
        yield "shared memory", False, f"{shm} is not writable: mount a tmpfs there"
        return
    free = shutil.disk_usage(shm).free
    yield "shared memory", free > 64 << 20, f"{free >> 20} MiB free in {shm} (docker: --shm-size)"


def disk() -> Iterator[Finding]:
    """SQLite in WAL mode in the working directory."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        connection = sqlite3.connect(Path(folder) / "probe.sqlite")
        mode = connection.execute("pragma journal_mode = wal").fetchone()[0]
        connection.close()
    yield "sqlite", mode == "wal", f"{sqlite3.sqlite_version}, journal {mode} (needs wal: use a local disk)"
    yield "disk", shutil.disk_usage(".").free > 1 << 30, f"{shutil.disk_usage('.').free >> 30} GiB free here"


def accelerator() -> Iterator[Finding]:
    """A GPU is welcome and not needed."""
    found = sorted(Path("/dev").glob("nvidia[0-9]*"))
    yield "gpu", True, ", ".join(path.name for path in found) or "none: everything runs on the CPU"


def sandbox() -> Iterator[Finding]:
    """What holds a reward file that nobody vouches for: one level is enough, and each is tried."""
    ladder = importlib.import_module("midflight.services.reward.sandbox.ladder")
    lacks = {level: ladder.missing(level) for level in ladder.SEALED}
    for level, why in lacks.items():
        fine = not why or "" in lacks.values()
        yield "sandbox", fine, f"{level} {'works' if not why else 'does not work: ' + why}"
    if "" not in lacks.values():
        yield "sandbox", False, f"none works: {ladder.REMEDY}"


def sglang() -> Iterator[Finding]:
    """The environment of SGLang, which only rollouts of that kind need."""
    command = importlib.import_module("midflight.services.rollout.sglang.command")
    config = importlib.import_module("midflight.services.rollout.sglang.config")
    try:
        yield "sglang", True, command.interpreter(config.SglangConfig())
    except UserMistake as error:
        yield "sglang", True, f"only for rollouts of that kind: {str(error).removeprefix('sglang: ')}"


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    system,
    packages,
    processes,
    memory,
    disk,
    accelerator,
    sandbox,
    sglang,
)
