"""midflight swap SLOT --with FILE|CLASS|KIND [key=value...]: replace what runs in a slot, without a gap."""

import argparse
import copy
import json
import sys
from typing import Any

from midflight.kernel.client import Client
from midflight.kernel.code import keep
from midflight.kernel.config import ConfigError
from midflight.kernel.config.part import Part, load_part
from midflight.kernel.rundir.directory import RunDir
from midflight.kernel.spec import knob_prefix
from midflight.kernel.watching import follow
from midflight.messages.control import Refused, Status, StatusGet
from midflight.messages.knobs import KnobGet, Knobs
from midflight.messages.live import SwapOk, SwapStart

from .common import chosen_run, print_json, request, run_option
from .exits import FAILED, OK, REFUSED, TIMED_OUT, USAGE, Stop


def options(parser: argparse.ArgumentParser) -> None:
    """Where, by what, and how long it is watched."""
    run_option(parser)
    parser.add_argument("slot", help="a slot of the topology, e.g. kl or rollout")
    parser.add_argument(
        "--with",
        dest="what",
        required=True,
        metavar="WHAT",
        help="FILE.yaml, FILE.py, module:ConfigClass, entry point or kind (of the kind that runs only what is named "
        "changes), or `topology`: as at the start",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. controller_type=pid")
    parser.add_argument("--reason", default="", help="kept in the journal with the change")
    parser.add_argument(
        "--probation", type=float, default=10.0, metavar="S", help="time the new one must live and work (default 10)"
    )
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="longest wait for the end")
    parser.add_argument("--no-wait", action="store_true", help="return as soon as it has begun")


def run(arguments: argparse.Namespace) -> int:
    """Check the configuration here, hand it to the kernel, and tell how it goes. Exit 1 when it was rolled back."""
    folder = chosen_run(arguments)
    with Client(folder.path) as client:
        status = client.ask("ctl", StatusGet()).message
        assert isinstance(status, Status)
        knobs = client.ask("ctl", KnobGet()).message
        assert isinstance(knobs, Knobs)
        part = checked(folder, arguments.slot, arguments.what, arguments.overrides, status, knobs)
        message = request(
            SwapStart,
            slot=arguments.slot,
            part_json=part.text,
            python_path=list(keep(folder.path, type(part.spec).__module__, part.python_path)),
            probation_s=arguments.probation,
            reason=arguments.reason,
        )
        answer = client.ask("ctl", message).message
        if isinstance(answer, Refused):
            raise Stop(REFUSED, answer.why)
        assert isinstance(answer, SwapOk)
        if arguments.no_wait:
            _print(arguments, {"slot": answer.slot, "number": answer.number, "stage": "starting"})
            return OK
        return watch(client, answer, status.seq, arguments)


def checked(folder: RunDir, slot: str, what: str, overrides: list[str], status: Status, knobs: Knobs) -> Part:
    """The configuration, checked with the whole topology. Raises Stop with every mistake."""
    topology = json.loads(folder.config_json.read_text())
    if slot not in topology["services"]:
        raise Stop(USAGE, f"there is no slot {slot!r}; there are: {', '.join(topology['services'])}")
    name = next((one.part for one in status.services if one.slot == slot and not one.attached), "")
    running = topology["services"][slot]
    if name:
        swapped = json.loads((folder.path / "parts" / f"{name}.json").read_text())
        running = swapped["part"]
        sys.path += [path for path in swapped["python_path"] if path not in sys.path]
    try:
        return load_part(slot, what, overrides, topology, as_it_is(running, slot, knobs))
    except ConfigError as error:
        raise Stop(USAGE, "\n".join(error.problems)) from None


def as_it_is(running: dict[str, Any], slot: str, knobs: Knobs) -> dict[str, Any]:
    """The configuration with the parameters that were set since."""
    out = copy.deepcopy(running)
    for knob in knobs.knobs:
        *sections, last = knob.declaration.name.removeprefix(knob_prefix(slot)).split(".")
        place: Any = out if knob.applies == slot and knob.declaration.name.startswith(knob_prefix(slot)) else {}
        for section in sections:
            place = place.get(section, {})
        if last in place:
            place[last] = knob.value
    return out


def watch(client: Client, swap: SwapOk, after: int, arguments: argparse.Namespace) -> int:
    """Tell each stage until it is done or taken back."""
    try:
        for event in follow(client, after, arguments.timeout):
            if event.topic != "swap" or event.body.get("number") != swap.number:
                continue
            _print(arguments, event.body)
            if event.body["stage"] == "rolled_back":
                return FAILED
            if event.body["stage"] == "done" and event.body["left"] == 0:
                return OK
    except TimeoutError:
        raise Stop(
            TIMED_OUT, f"not done after {arguments.timeout:g} s; `midflight history` tells how it goes"
        ) from None
    raise Stop(FAILED, "the run ended before the swap was done")


def _print(arguments: argparse.Namespace, body: dict[str, Any]) -> None:
    if arguments.json:
        print_json(body)
        return
    why = f": {body['why']}" if body.get("why") else ""
    print(f"{body.get('name', body['slot'])} swap {body['number']} {str(body['stage']).replace('_', ' ')}{why}")
