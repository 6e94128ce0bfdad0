"""midflight ctl: controllers of a live run: list, attach, compare, promote, roll back, detach, lock."""

import argparse

from midflight.kernel.client import Client
from midflight.messages.control import Refused, Status, StatusGet
from midflight.messages.knobs import KnobGet, Knobs
from midflight.messages.live import ControllerDo, Controllers, ControllersGet, SwapOk

from . import ctl_attach, ctl_compare, swap
from .common import chosen_run, print_json, request, run_option, table
from .exits import OK, REFUSED, USAGE, Stop

ASK = {
    "promote": ("NAME", "a shadow steers from now on; who ruled before goes on as its shadow"),
    "rollback": ("SLOT", "undo the slot's swap under way, or its last promotion, or its last swap"),
    "detach": ("NAME", "an attached controller leaves; its knobs fall back"),
    "lock": ("SLOT", "hold the slot's knobs by hand, at the values they have"),
    "unlock": ("SLOT", "give them back to who ruled before"),
}
MARK = {"active": "●", "shadow": "○", "previous": "◌", "standby": "◔"}


def options(parser: argparse.ArgumentParser) -> None:
    """One action each."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    run_option(actions.add_parser("ls", help="who steers, who would", allow_abbrev=False))
    show = actions.add_parser("show", help="one controller: parameters with bounds, last decision", allow_abbrev=False)
    run_option(show)
    show.add_argument("name", metavar="NAME")
    ctl_attach.options(actions.add_parser("attach", help="a controller joins the run from here", allow_abbrev=False))
    ctl_compare.options(actions.add_parser("compare", help="a shadow's decisions and the active's", allow_abbrev=False))
    for name, (what, text) in ASK.items():
        one = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        run_option(one)
        one.add_argument("name", metavar=what)
        one.add_argument("--reason", default="", help="kept in the journal")
        if name == "rollback":
            one.add_argument("--timeout", type=float, default=300.0, metavar="S", help="longest wait for a swap back")


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    if arguments.action == "attach":
        return ctl_attach.run(arguments)
    if arguments.action == "compare":
        return ctl_compare.run(arguments)
    with Client(chosen_run(arguments).path) as client:
        if arguments.action in ASK:
            return _ask(client, arguments)
        listed = client.ask("ctl", ControllersGet()).message
        held = client.ask("ctl", KnobGet()).message
        assert isinstance(listed, Controllers)
        assert isinstance(held, Knobs)
        return _list(listed, held, arguments) if arguments.action == "ls" else _show(listed, held, arguments)


def _ask(client: Client, arguments: argparse.Namespace) -> int:
    """Done at once, unless what is rolled back is a swap that is done: that takes another swap, which is waited for."""
    message = request(ControllerDo, verb=arguments.action, name=arguments.name, reason=arguments.reason)
    status = client.ask("ctl", StatusGet()).message
    assert isinstance(status, Status)
    answer = client.ask("ctl", message).message
    if isinstance(answer, Refused):
        raise Stop(REFUSED, answer.why)
    if isinstance(answer, SwapOk):
        return swap.watch(client, answer, status.seq, arguments)
    if arguments.json:
        print_json({"action": arguments.action, "name": arguments.name})
    else:
        print(f"{arguments.action} {arguments.name}: done")
    return OK


def _list(listed: Controllers, knobs: Knobs, arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json(listed.model_dump())
        return OK
    rows = [["", "SLOT", "NAME", "STANDING", "KIND", "STEERS", "DECISIONS", "FROM", "DOING"]]
    for one in listed.controllers:
        doing = " ".join(f"{name}={value}" for name, value in one.stats.items())
        origin = "outside" if one.attached else "topology"
        steered = ",".join(one.holds)
        identity = f"{one.name}#{one.generation}"
        mark = MARK[one.standing]
        rows.append([mark, one.slot, identity, one.standing, one.kind, steered, str(one.decisions), origin, doing[:60]])
    print(table(rows))
    for slot in listed.locked:
        print(f"{slot} is locked by hand")
    wanted = {name for one in listed.controllers for name in one.holds}
    for knob in knobs.knobs:
        if knob.declaration.name in wanted and knob.owner is None:
            print(f"nobody steers {knob.declaration.name}: it holds {knob.value}")
    return OK


def _show(listed: Controllers, knobs: Knobs, arguments: argparse.Namespace) -> int:
    one = next((one for one in listed.controllers if arguments.name in (one.name, one.slot)), None)
    if one is None:
        known = ", ".join(sorted({one.name for one in listed.controllers})) or "none"
        raise Stop(USAGE, f"there is no controller {arguments.name!r}; there are: {known}")
    prefix = one.name if one.attached else one.slot
    own = [knob for knob in knobs.knobs if knob.applies == prefix]
    if arguments.json:
        print_json({**one.model_dump(), "parameters": [knob.model_dump() for knob in own]})
        return OK
    print(f"{one.name}#{one.generation}  {one.standing} in {one.slot}  {one.kind}  steers {', '.join(one.holds)}")
    print(" ".join(f"{name}={value}" for name, value in one.stats.items()) or "no decision yet")
    rows = [["PARAMETER", "VALUE", "UNIT", "BOUNDS", "VERSION", "BY", "REASON"]]
    for knob in own:
        spec = knob.declaration
        bounds = "|".join(spec.choices) or f"{spec.low}..{spec.high}"
        by = knob.author or "configuration"
        rows.append([spec.name, str(knob.value), spec.unit, bounds, str(knob.version), by, knob.reason])
    print(table(rows))
    return OK
