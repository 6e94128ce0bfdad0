"""A controller from outside: how its process begins, joins a run, and leaves.

`midflight ctl attach` runs it in its own terminal, or in the background. The warden does not own it: it is not
restarted, and when it ends, however it ends, its knobs fall back and the run goes on.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import structlog

from . import logs
from .actor import Actor, Attached
from .boot import told
from .loop import Loop
from .rundir.directory import RunDir
from .settings import Settings

FENCED = 4
"""Exit code of a process whose identity is over."""


def warden_handle(run_dir: Path) -> int | None:
    """A descriptor of the run's warden; None when it is gone already."""
    try:
        return os.pidfd_open(RunDir(run_dir).lock.holder()[0])
    except OSError:
        return None


def run_attached(run_dir: Path, name: str) -> int:
    """Run the controller of RUN/attached/NAME.json until it leaves; -> its exit code, as those of `boot`."""
    plan = json.loads((run_dir / "attached" / f"{name}.json").read_text())
    run = json.loads((run_dir / "run.json").read_text())
    data = json.loads((run_dir / "config.json").read_text())
    data["python_path"] = [*plan["python_path"], *data["python_path"]]
    generation = random.SystemRandom().randrange(1, 2**30)
    logs.configure(run_dir / "logs" / f"{name}.jsonl", run=run["run_id"], service=name, generation=generation)
    log, loop = structlog.get_logger(), Loop()
    try:
        settings = Settings.of(run_dir, run, data, name, plan["slot"], plan["part"])
        module, _, cls = settings.entry.partition(":")
        actor: Actor = getattr(import_module(module), cls)(f"{name}#{generation}", loop, settings)
        actor.attached, actor.kind = (
            Attached(plan["slot"], plan["reason"], warden_handle(run_dir)),
            plan["part"]["kind"],
        )
        actor.role = "shadow" if plan["shadow"] else "active"
        for port, role in actor.ports().items():
            loop.add(port, role, settings.endpoints[port], actor.identity if role == "dealer" else "")
        log.info("attached", pid=os.getpid(), slot=plan["slot"], shadow=plan["shadow"])
        leave: dict[int, Callable[[], None]] = {
            number: lambda: actor.leave(0) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        code = loop.run(actor, leave)
        actor.close()
        loop.flush(0.5)
        log.info("left", code=code)
        if code == FENCED:
            sys.stderr.write(f"{name}: the run knows it no longer: it was detached, or silent for too long\n")
    except Exception as error:
        code = told(error)
    return code


if __name__ == "__main__":
    sys.exit(run_attached(Path(sys.argv[1]), sys.argv[2]))
