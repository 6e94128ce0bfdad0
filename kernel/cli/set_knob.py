"""midflight set NAME=VALUE: change a knob of a live run; midflight set NAME --release: give a taken one back."""

import argparse

from midflight.kernel.client import Client
from midflight.messages.control import Refused
from midflight.messages.knobs import KnobOk, KnobRelease, KnobSet

from .common import chosen_run, print_json, request, run_option
from .exits import REFUSED, STALE, USAGE, Stop


def options(parser: argparse.ArgumentParser) -> None:
    """What, why, and under which condition."""
    run_option(parser)
    parser.add_argument("assignment", metavar="NAME=VALUE", help="e.g. optim.lr=3e-4; only NAME with --release")
    parser.add_argument("--reason", default="", help="kept in the journal with the change")
    parser.add_argument("--if-version", type=int, metavar="N", help="refuse unless the knob is still at version N")
    parser.add_argument("--take", action="store_true", help="take the knob from the controller that holds it")
    parser.add_argument("--release", action="store_true", help="give a knob taken by --take back to its controller")


def run(arguments: argparse.Namespace) -> int:
    """Ask the kernel; it checks bounds, owner and version."""
    if arguments.release:
        return _release(arguments)
    name, equals, text = arguments.assignment.partition("=")
    if not equals:
        raise Stop(USAGE, f"{arguments.assignment!r}: want NAME=VALUE; `midflight get` lists the names")
    asked = {"if_version": arguments.if_version, "take": arguments.take, "reason": arguments.reason}
    message = request(KnobSet, knob=name, value=parse(text), **asked)
    with Client(chosen_run(arguments).path) as client:
        answer = client.ask("ctl", message).message
    if isinstance(answer, Refused):
        raise Stop(STALE if answer.code == "version" else REFUSED, answer.why)
    assert isinstance(answer, KnobOk)
    if arguments.json:
        print_json(answer.model_dump())
    else:
        print(f"{answer.knob} = {answer.value} (version {answer.version})")
    return 0


def _release(arguments: argparse.Namespace) -> int:
    message = request(KnobRelease, knob=arguments.assignment)
    with Client(chosen_run(arguments).path) as client:
        answer = client.ask("ctl", message).message
    if isinstance(answer, Refused):
        raise Stop(REFUSED, answer.why)
    if arguments.json:
        print_json({"knob": arguments.assignment, "released": True})
    else:
        print(f"{arguments.assignment} released")
    return 0


def parse(text: str) -> float | int | bool | str:
    """A value as it would be in a topology file."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
