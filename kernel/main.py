"""How the kernel process begins: `python -P -m midflight.kernel.main RUN_DIR`, spawned by the warden.

Exit codes: 0 the run is over (the warden has its code); 3 the warden is gone; 1 a fault, and the warden starts a
successor that reads the journal.
"""

import gc
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from . import logs
from .config import parse_resolved
from .journal import Journal
from .journal_format import NotAJournal
from .journal_reader import recover
from .kernel import Kernel
from .loop import Loop
from .owner import WardenOwner
from .parts import Parts
from .process import bootstrap_from_environment
from .rundir import RunDir, remove_shm
from .supervisor import Supervisor
from .warden_link import WardenLink, WardenLost

CONNECT_S = 5.0
NOTHING: tuple[None, list[Any]] = (None, [])
"""What a run without a journal remembers."""


def main(argv: list[str]) -> int:
    """Run one incarnation of the kernel."""
    bootstrap_from_environment(oom_score_adj=0)
    folder = RunDir(argv[0])
    info = folder.info()
    assert info is not None, f"{folder.path}: no run.json"
    generation = int(os.environ.get("MIDFLIGHT_GENERATION", "1"))
    logs.configure(folder.logs / "kernel.jsonl", run=info.run_id, service="kernel", generation=generation)
    log = structlog.get_logger()
    topology = parse_resolved(json.loads(folder.config_json.read_text()))
    parts = Parts(folder.path / "parts", topology.services)
    supervisor = Supervisor(topology.services, random.Random(os.getpid()), spec_of=parts.spec)
    link = WardenLink(folder.path)
    link.connect(time.monotonic() + CONNECT_S)
    owner = WardenOwner(link, parts)
    loop = Loop()
    past = remembered(folder.journal)
    journal = Journal(folder.journal, lambda: kernel.snapshot())
    kernel = Kernel(f"kernel#{generation}", loop, info.run_id, supervisor, owner, journal, parts)
    loop.add("ctl", "router", info.endpoints["ctl"], kernel.identity)
    loop.add("ev", "xpub", info.endpoints["ev"])
    kernel.recover(*past)
    if past == NOTHING:
        supervisor.outgrow(former_generations(folder.logs))
    log.info("started", pid=os.getpid(), newest_event=kernel.stream.newest)
    kernel.stream.emit("kernel", "kernel.boot", {"boot": kernel.boot_id, "generation": generation, "pid": os.getpid()})
    gc.collect()
    gc.freeze()  # what was imported lives as long as the process; no need to look at it again
    try:
        code = loop.run(kernel, {signal.SIGTERM: lambda: kernel.leave(0), signal.SIGINT: lambda: None})
    except WardenLost as error:
        log.error("the warden is gone", why=str(error))
        code = 3
    kernel.stream.flush()
    if code == 0:  # the run is over, or the warden ends it and has stopped everyone else
        loop.flush(0.5)
        _clean(folder, info.run_id)
    journal.close()
    log.info("left", code=code)
    return code


def remembered(path: Path) -> tuple[Any, list[Any]]:
    """(snapshot, records after it) of the journal; one that is not ours is moved aside, and the run goes on without."""
    try:
        return recover(path)
    except FileNotFoundError:
        return NOTHING
    except NotAJournal as error:
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        path.rename(aside)
        structlog.get_logger().error("journal moved aside: events and knob settings before are lost", why=str(error))
        return NOTHING


def former_generations(logs: Path) -> Iterator[tuple[str, int]]:
    """(name, generation) of every process whose output is still here: a run without a journal must not reuse them."""
    for path in logs.glob("*.*.out"):
        name, generation, _ = path.name.rsplit(".", 2)
        if generation.isdigit():
            yield name, int(generation)


def _clean(folder: RunDir, run_id: str) -> None:
    """Sockets and shared memory go with the run."""
    folder.remove_sockets()
    remove_shm(run_id, folder.shm_root)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
