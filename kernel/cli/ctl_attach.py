"""midflight ctl attach WHAT --slot SLOT [--shadow]: a controller that the topology never named joins a live run."""

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from midflight.kernel.attach import run_attached
from midflight.kernel.client import Client
from midflight.kernel.code import keep
from midflight.kernel.config import ConfigError
from midflight.kernel.config.part import Part, load_part
from midflight.kernel.config.registry import service_class
from midflight.kernel.rundir.directory import RunDir
from midflight.kernel.watching import follow
from midflight.messages.control import Status, StatusGet

from .common import chosen_run, print_json, run_option
from .exits import FAILED, OK, TIMED_OUT, USAGE, Stop

RESERVED = ("operator", "kernel", "warden")
LOOK_S = 0.5
"""How often the new process's end is looked for."""


def options(parser: argparse.ArgumentParser) -> None:
    """What, where, and with which power."""
    run_option(parser)
    parser.add_argument("what", metavar="WHAT", help="FILE.py, FILE.yaml, module:ConfigClass, an entry point or a kind")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="its parameters, e.g. gain=0.5")
    parser.add_argument("--slot", required=True, help="where it steers, e.g. kl")
    parser.add_argument("--name", help="what it is called in this run; default the file's or the kind's name")
    parser.add_argument("--shadow", action="store_true", help="decide without power until it is promoted")
    parser.add_argument("--reason", default="", help="kept in the journal")
    parser.add_argument(
        "-d", "--detach", action="store_true", help="run in the background, and return once it is there"
    )
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="with -d: longest wait (default 30)")


def run(arguments: argparse.Namespace) -> int:
    """Check its configuration, then be the controller until Ctrl-C, `ctl detach` or the end of the run."""
    folder = chosen_run(arguments)
    name = arguments.name or default_name(arguments.what)
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", name):
        raise Stop(USAGE, f"--name {name!r}: up to 32 of a-z 0-9 _ - that begin with a letter")
    if name in RESERVED:
        raise Stop(USAGE, f"--name {name}: that is somebody else's name in this run")
    part = _checked(folder, name, arguments)
    code = keep(folder.path, type(part.spec).__module__, part.python_path)
    plan = {"slot": arguments.slot, "part": part.data, "python_path": code, "shadow": arguments.shadow}
    plan["reason"] = arguments.reason
    with Client(folder.path) as client:
        status = client.ask("ctl", StatusGet()).message
        assert isinstance(status, Status)
        taken = [one for one in status.services if name in (one.name, one.slot)]
        if taken:
            raise Stop(USAGE, f"{name!r} is a name of this run already; choose another by --name")
    (folder.path / "attached").mkdir(mode=0o700, exist_ok=True)
    folder.write_json(folder.path / "attached" / f"{name}.json", plan)
    if arguments.detach:
        return _background(folder, name, status.seq, arguments)
    print(f"{name} joins {folder.path} in {arguments.slot}; Ctrl-C detaches it", file=sys.stderr)
    return run_attached(folder.path, name)


def default_name(what: str) -> str:
    """The file's or module's own name."""
    stem = Path(what).stem if Path(what).suffix in (".py", ".yaml", ".yml") else what.partition(":")[0].split(".")[-1]
    return re.sub(r"[^a-z0-9_-]", "-", stem.lower())


def _checked(folder: RunDir, name: str, arguments: argparse.Namespace) -> Part:
    topology = json.loads(folder.config_json.read_text())
    sys.path += [path for path in topology["python_path"] if path not in sys.path]
    try:
        part = load_part(name, arguments.what, arguments.overrides, topology)
    except ConfigError as error:
        raise Stop(USAGE, "\n".join(error.problems)) from None
    knobs = tuple(getattr(part.spec, "steers", ()))
    if not knobs:
        raise Stop(USAGE, f"{arguments.what} is no controller: its configuration says no knobs to steer")
    if why := wrong_slot(arguments.slot, knobs, topology["services"]):
        raise Stop(USAGE, why)
    return part


def wrong_slot(slot: str, knobs: tuple[str, ...], services: dict[str, Any]) -> str:
    """Why it cannot steer there, or nothing: where its knobs are steered already, or under a name of its own."""
    steered = {}
    for name, part in services.items():
        spec = service_class(part["kind"]).model_validate(part)
        if controls := tuple(getattr(spec, "steers", ())):
            steered[name] = controls
        elif name == slot:
            return f"--slot {slot}: {slot} is no controller"
    places = [name for name, controls in steered.items() if set(controls) & set(knobs)]
    if places and slot not in places:
        return f"--slot {slot}: {', '.join(knobs)} is steered in {places[0]}: --slot {places[0]}"
    return ""


def _background(folder: RunDir, name: str, newest: int, arguments: argparse.Namespace) -> int:
    """Be it in a session of its own, and wait until it is there, and in power unless it is a shadow."""
    output = folder.logs / f"{name}.out"
    process = _fork(folder, name, output)
    with Client(folder.path) as client:
        there = _there(client, process, name, newest, arguments)
    if there:
        _say(arguments, name, process)
        return OK
    if not _ended(process):
        os.kill(process, signal.SIGTERM)
        raise Stop(TIMED_OUT, f"{name} was not there after {arguments.timeout:g} s; see {output}")
    lines = output.read_text(errors="replace").strip().splitlines()
    raise Stop(FAILED, f"{name} ended at once: {lines[-1] if lines else f'see {output}'}")


def _fork(folder: RunDir, name: str, output: Path) -> int:
    """A copy of this process goes on as the controller: all it needs is imported already; -> its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = FAILED
    try:
        os.setsid()
        for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
            os.dup2(os.open(path, flags, 0o600), number)
        os.dup2(1, 2)
        code = run_attached(folder.path, name)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _ended(process: int) -> bool:
    """Whether our child has ended; it stays ours to be asked again."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _there(client: Client, process: int, name: str, newest: int, arguments: argparse.Namespace) -> bool:
    """Whether it came before its time was up; its end is looked for in between."""
    wanted = "controller.attached" if arguments.shadow else "controller.promoted"
    until = time.monotonic() + arguments.timeout
    while not _ended(process) and time.monotonic() < until:
        with contextlib.suppress(TimeoutError):
            ours = there = False
            for event in follow(client, newest, LOOK_S):
                if event.body.get("name") == name:
                    ours = ours or (event.topic == "client.state" and event.body.get("pid") == process)
                    there = there or event.topic == wanted
                if ours and there:
                    return True
    return False


def _say(arguments: argparse.Namespace, name: str, pid: int) -> None:
    if arguments.json:
        print_json({"name": name, "slot": arguments.slot, "shadow": arguments.shadow, "pid": pid})
    else:
        print(f"{name} {'decides as a shadow' if arguments.shadow else 'steers'} in {arguments.slot} (process {pid})")
