"""midflight service pause|resume|drain|restart|kill|scale NAME: what a service is to do."""

import argparse

from midflight.kernel.client import Client
from midflight.kernel.watching import follow
from midflight.messages.base import Message
from midflight.messages.control import Refused, ServiceStatus, Status, StatusGet
from midflight.messages.live import ServiceDo, ServiceScale

from .common import chosen_run, print_json, request, run_option
from .exits import OK, REFUSED, TIMED_OUT, Stop

VERBS = {
    "pause": "take no new work; finish what is in hand and stay",
    "resume": "take work again",
    "drain": "finish what is in hand and leave, until it is restarted or scaled up",
    "restart": "drain, then start again; a learner leaves a checkpoint and goes on from it",
    "kill": "SIGKILL; its restart policy says what follows",
    "scale": "so many replicas from now on",
}
UP = ("ready", "running")


def options(parser: argparse.ArgumentParser) -> None:
    """One of six actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in VERBS.items():
        one = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        run_option(one)
        one.add_argument("name", metavar="NAME", help="a process such as rollout-1, or a slot: all its replicas")
        if name == "scale":
            one.add_argument("replicas", type=int, help="number of processes")
        one.add_argument("--reason", default="", help="kept in the journal")
        one.add_argument("--timeout", type=float, default=120.0, metavar="S", help="longest wait (default 120)")
        one.add_argument("--no-wait", action="store_true", help="return as soon as the kernel has it")


def run(arguments: argparse.Namespace) -> int:
    """Ask the kernel, then wait until it is so."""
    if arguments.action == "scale":
        fields = {"slot": arguments.name, "replicas": arguments.replicas, "reason": arguments.reason}
        message: Message = request(ServiceScale, **fields)
    else:
        message = request(ServiceDo, verb=arguments.action, name=arguments.name, reason=arguments.reason)
    with Client(chosen_run(arguments).path) as client:
        before = _lines(client, arguments.name)
        newest = _status(client).seq
        answer = client.ask("ctl", message).message
        if isinstance(answer, Refused):
            raise Stop(REFUSED, answer.why)
        if not arguments.no_wait:
            _wait(client, arguments, before, newest)
        lines = _lines(client, arguments.name)
    if arguments.json:
        print_json([line.model_dump() for line in lines])
    else:
        if not lines:
            print(f"{arguments.name}: no process")
        for line in lines:
            print(f"{line.name}#{line.generation} {line.state}{' (paused)' if line.paused else ''}")
    return OK


def _wait(client: Client, arguments: argparse.Namespace, before: list[ServiceStatus], newest: int) -> None:
    if _so(arguments, before, before if arguments.action != "restart" else []):
        return
    try:
        for event in follow(client, newest, arguments.timeout):
            if event.topic in ("service.state", "run.state") and _so(arguments, before, _lines(client, arguments.name)):
                return
    except TimeoutError:
        text = f"not so after {arguments.timeout:g} s; `midflight ps` tells what it waits for"
        raise Stop(TIMED_OUT, text) from None


def _so(arguments: argparse.Namespace, before: list[ServiceStatus], now: list[ServiceStatus]) -> bool:
    """Whether what was asked for has come about."""
    match arguments.action:
        case "pause" | "resume":
            return all(line.paused == (arguments.action == "pause") for line in now)
        case "drain":
            return all(line.state in ("stopped", "failed") for line in now)
        case "scale":
            return len(now) == arguments.replicas and all(line.state in UP for line in now)
    old = {line.name: line.generation for line in before}
    return all(line.generation > old.get(line.name, 0) and line.state in UP for line in now)


def _lines(client: Client, name: str) -> list[ServiceStatus]:
    return [line for line in _status(client).services if name in (line.name, line.slot) and not line.attached]


def _status(client: Client) -> Status:
    status = client.ask("ctl", StatusGet()).message
    assert isinstance(status, Status)
    return status
