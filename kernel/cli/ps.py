"""midflight ps: every service, its state, and what it waits for."""

import argparse
import time
from textwrap import shorten

from midflight.kernel.client import Client
from midflight.messages.control import ServiceStatus, Status, StatusGet

from .common import chosen_run, print_json, run_option, seconds, table

RANKS = "ranks"
"""Where a service's stats say which processes its ranks are."""


def options(parser: argparse.ArgumentParser) -> None:
    """Nothing but the run."""
    run_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask the kernel once and print its answer."""
    run = chosen_run(arguments)
    with Client(run.path) as client:
        status = client.ask("ctl", StatusGet()).message
    assert isinstance(status, Status)
    if arguments.json:
        print_json(status.model_dump())
        return 0
    ending = f", ending: {status.stopping}" if status.stopping else ""
    info = run.info()
    age = (time.time_ns() - info.started_ns) / 1e9 if info else status.up_s
    print(f"{status.run_id}  up {seconds(age)}, warden {status.warden_pid}, kernel {status.kernel_pid}{ending}")
    head = ["SERVICE", "STATE", "PID", "UP", "SEEN", "RESTARTS", "DOING", "WAITING FOR"]
    print(table([head, *([*_cells(service)] for service in status.services)]))
    for service in status.services:
        for line in below(service):
            print(line)
    return 0


def below(service: ServiceStatus) -> list[str]:
    """What has no room in a service's row: the processes of its ranks, and why the last one ended."""
    lines = [f"{service.name}: ranks {service.stats[RANKS]}"] if RANKS in service.stats else []
    if service.cause and service.state in ("backoff", "failed"):
        lines.append(f"{service.name}: {service.cause}")
    elif service.cause and service.restarts and service.state in ("starting", "loading"):
        lines.append(f"{service.name}: the one before ended: {service.cause}")
    return lines


def state(service: ServiceStatus) -> str:
    """State, with what is special about it."""
    special: list[str] = [service.role] if service.role != "active" else []
    special += ["paused"] if service.paused else []
    special += ["attached"] if service.attached else []
    return f"{service.state} ({', '.join(special)})" if special else service.state


def _cells(service: ServiceStatus) -> tuple[str, ...]:
    doing = service.phase or " ".join(f"{key}={value}" for key, value in service.stats.items() if key != RANKS)
    waits = ", ".join(
        f"{w.name} ({'peer' if w.left_s is None else seconds(max(0.0, w.left_s))})" for w in service.waits
    )
    kind = f" ({service.kind})" if service.part and service.kind else ""  # not what the topology says
    return (
        f"{service.name}#{service.generation}{kind}",
        state(service),
        str(service.pid or "-"),
        seconds(service.up_s),
        seconds(service.seen_s),
        str(service.restarts),
        shorten(doing, 76, placeholder=" ...") or "-",
        waits or "-",
    )
