"""How a service process begins: `python -P -m midflight.kernel.boot`, spawned by the warden.

Reads its name from the environment, ties its life to the warden's, sets its limits, opens its log, loads its own part
of the resolved configuration, imports its class and runs it until it leaves. Exit codes: 0 done, 1 a fault (logged with
its traceback), 3 the warden is gone, 4 fenced by a successor, 78 a mistake of the user's, 143 SIGTERM.
"""

import gc
import os
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path

import structlog

from . import logs
from .actor import Actor
from .loop import Loop
from .mistake import EXIT_MISTAKE, UserMistake
from .process import bootstrap_from_environment
from .settings import Settings


def main() -> int:
    """Run one service; -> its exit code."""
    bootstrap_from_environment()
    os.nice(int(os.environ.get("MIDFLIGHT_NICE", "0")))
    run_dir, name = Path(os.environ["MIDFLIGHT_RUN_DIR"]), os.environ["MIDFLIGHT_NAME"]
    try:
        settings = Settings.read(run_dir, name, os.environ.get("MIDFLIGHT_PART", ""))
    except UserMistake as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return EXIT_MISTAKE
    generation = int(os.environ["MIDFLIGHT_GENERATION"])
    logs.configure(
        settings.run_dir / "logs" / f"{settings.name}.jsonl",
        run=settings.run_id,
        service=settings.name,
        generation=generation,
    )
    log = structlog.get_logger()
    module, _, cls = settings.entry.partition(":")
    loop = Loop()
    try:
        actor: Actor = getattr(import_module(module), cls)(f"{settings.name}#{generation}", loop, settings)
        actor.kind = settings.config.kind
        for port, role in actor.ports().items():
            identity = actor.identity if role in ("dealer", "router") else ""
            loop.add(port, role, settings.endpoints[port], identity)
        log.info("started", pid=os.getpid())
        gc.freeze()  # imported libraries stay: no later collection walks them (a pause of 0.1 s with torch)
        code = loop.run(actor, {signal.SIGTERM: lambda: actor.leave(128 + signal.SIGTERM), signal.SIGINT: _ignore})
        actor.close()
        loop.flush(0.5)
        log.info("left", code=code)
    except Exception as error:
        code = told(error)
    _finish(code)
    return code


def told(error: Exception) -> int:
    """Say why a process ends, to its log and last on its output, where the kernel looks; -> its exit code."""
    log = structlog.get_logger()
    if isinstance(error, UserMistake):
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        log.error("cannot run", why=str(error))
        return EXIT_MISTAKE
    traceback.print_exception(error)
    sys.stderr.write(last_words(error) + "\n")
    log.error("crashed", error=f"{type(error).__name__}: {error}", exc_info=error)
    return 1


def last_words(error: BaseException) -> str:
    """One line for people, which the kernel shows as the reason: where, and what."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    return " ".join(f"{where}{type(error).__name__}: {error}".split())[:900]


def _ignore() -> None:
    """Ctrl-C in a terminal reaches the whole group; only the launcher acts on it."""


def _finish(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # torch's and libraries' threads must not turn a clean end into a crash


if __name__ == "__main__":
    sys.exit(main())
