"""midflight set NAME=VALUE: change a knob of a live run; midflight set NAME --release: give a taken one back."""

import argparse
import math
import re

from midflight.kernel.client import Client
from midflight.kernel.watching import follow
from midflight.messages.control import Refused, Status, StatusGet
from midflight.messages.knobs import KnobOk, KnobRelease, KnobSet

from .common import chosen_run, print_json, request, run_option
from .exits import REFUSED, STALE, TIMED_OUT, USAGE, Stop

FOR = re.compile(r"([1-9][0-9]{0,11}) ?(steps?)?")


def options(parser: argparse.ArgumentParser) -> None:
    """What, why, and under which condition."""
    run_option(parser)
    parser.add_argument("assignment", metavar="NAME=VALUE", help="e.g. optim.lr=3e-4; only NAME with --release")
    parser.add_argument("--reason", default="", help="kept in the journal with the change")
    parser.add_argument("--if-version", type=int, metavar="N", help="refuse unless the knob is still at version N")
    parser.add_argument("--take", action="store_true", help="take the knob from the controller that holds it")
    parser.add_argument("--for", dest="steps", metavar="N[steps]", help="training steps after which all is as before")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="longest wait until it is in force")
    parser.add_argument("--no-wait", action="store_true", help="return as soon as the kernel has accepted it")
    parser.add_argument("--release", action="store_true", help="give a knob taken by --take back to its controller")


def run(arguments: argparse.Namespace) -> int:
    """Ask the kernel; it checks bounds, owner and version."""
    if arguments.release:
        return _release(arguments)
    name, equals, text = arguments.assignment.partition("=")
    if not equals:
        raise Stop(USAGE, f"{arguments.assignment!r}: want NAME=VALUE; `midflight get` lists the names")
    asked = {"if_version": arguments.if_version, "take": arguments.take, "reason": arguments.reason}
    message = request(KnobSet, knob=name, value=parse(text), for_steps=steps(arguments.steps), **asked)
    with Client(chosen_run(arguments).path) as client:
        status = client.ask("ctl", StatusGet()).message
        assert isinstance(status, Status)
        answer = client.ask("ctl", message).message
        if isinstance(answer, Refused):
            raise Stop(STALE if answer.code == "version" else REFUSED, answer.why)
        assert isinstance(answer, KnobOk)
        since = None if arguments.no_wait else in_force(client, answer, status.seq, arguments.timeout)
    if arguments.json:
        print_json({**answer.model_dump(), "step": since})
    else:
        when = "" if since is None else f" from step {since}"
        print(f"{answer.knob} = {answer.value}{when} (version {answer.version})")
    return 0


def in_force(client: Client, answer: KnobOk, after: int, timeout_s: float) -> int:
    """Wait until the service has applied it; -> the step from which it holds. Raises Stop when it cannot be used."""
    try:
        for event in follow(client, after, timeout_s):
            body = event.body
            if body.get("knob") != answer.knob or int(str(body.get("version", -1))) < answer.version:
                continue
            if event.topic == "knob.applied":
                return int(str(body["step"]))
            if event.topic == "knob" and body["author"] == "kernel" and body["version"] == answer.version + 1:
                raise Stop(REFUSED, str(body["reason"]))
    except TimeoutError:
        text = f"{answer.knob} = {answer.value} is accepted (version {answer.version}) and not in force"
        raise Stop(TIMED_OUT, f"{text} after {timeout_s:g} s: is the service that applies it busy or paused?") from None
    raise Stop(TIMED_OUT, "the run ended before the value was in force")


def steps(text: str | None) -> int | None:
    """`50` or `50steps`. Raises Stop."""
    if text is None:
        return None
    found = FOR.fullmatch(text)
    if not found:
        raise Stop(USAGE, f"--for {text!r}: want a number of training steps, such as 50steps")
    return int(found[1])


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
            value = kind(text)
        except ValueError:
            continue
        if not math.isfinite(value):
            raise Stop(USAGE, f"{text}: want a finite number")
        return value
    return text
