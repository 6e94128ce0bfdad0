"""midflight ledger: does every sample ever issued have exactly one state? Also for runs that are over."""

import argparse
from datetime import datetime
from importlib import import_module

from midflight.kernel.client import Client
from midflight.kernel.rundir.directory import RunDir
from midflight.messages.samples import LedgerGet, LedgerStatus

from .common import chosen_run, print_json, printable, request, run_option, table
from .exits import FAILED, NO_RUN, OK, Stop


def options(parser: argparse.ArgumentParser) -> None:
    """One sample, or all."""
    run_option(parser)
    parser.add_argument("--sample", type=int, metavar="ID", help="tell one sample's whole life")


def run(arguments: argparse.Namespace) -> int:
    """Ask the ledger; of a run that is over, read its store. Exit 1 when it does not balance."""
    message = request(LedgerGet, sample=arguments.sample)
    folder = chosen_run(arguments, live=False)
    status = _ask(folder, message)
    if arguments.sample is not None and not status.life:
        raise Stop(FAILED, f"sample {arguments.sample} was never issued")
    if arguments.json:
        print_json(status.model_dump())
    elif arguments.sample is not None:
        _print_life(status)
    else:
        _print_balance(status)
    return FAILED if status.problems else OK


def _ask(folder: RunDir, message: LedgerGet) -> LedgerStatus:
    if folder.is_live():
        with Client(folder.path) as client:
            answer = client.ask("data", message).message
        assert isinstance(answer, LedgerStatus)
        return answer
    if not folder.ledger_db.exists():
        raise Stop(NO_RUN, f"{folder.path}: no ledger here")
    # By name: the kernel does not depend on services.
    offline: LedgerStatus = import_module("midflight.services.ledger.status").offline(folder.ledger_db, message.sample)
    return offline


def _print_balance(status: LedgerStatus) -> None:
    for name, issued, states in (("train", status.issued, status.states), ("eval", None, status.eval_states)):
        total = sum(states.values())
        line = " + ".join(f"{n} {state}" for state, n in states.items()) or "0"
        print(f"{name}: {total if issued is None else issued} issued = {line}")
    print(f"step {status.step}, committed {status.committed}, policy version {status.version}")
    for why, count in status.reasons.items():
        seen = f" (`--sample {status.examples[why]}` is one)" if why in status.examples else ""
        print(f"  {count} {why}{seen}")
    for problem in status.problems:
        print(f"PROBLEM {problem}")
    print("balanced" if not status.problems else "DOES NOT BALANCE")


def _print_life(status: LedgerStatus) -> None:
    rows = [["WHEN", "STATE", "EPOCH", "WHO", "WHY"]]
    for event in status.life:
        at = datetime.fromtimestamp(int(event["at_ns"] or 0) / 1e9).strftime("%H:%M:%S.%f")
        rows.append([at, *(str(event[key] or "-") for key in ("state", "epoch", "who", "why"))])
    print(table(rows))
    if status.said:
        said = [[str(one["turn"]), str(one["role"]), printable(str(one["content"]))] for one in status.said]
        print("\n" + table([["TURN", "ROLE", "SAID"], *said]))
