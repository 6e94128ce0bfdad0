"""midflight get [PREFIX]: the knobs of a live run."""

import argparse

from midflight.kernel.client import Client
from midflight.messages.knobs import KnobGet, Knobs

from .common import chosen_run, print_json, request, run_option, table


def options(parser: argparse.ArgumentParser) -> None:
    """Which knobs."""
    run_option(parser)
    parser.add_argument("prefix", nargs="?", default="", help="only knobs whose name begins so")


def run(arguments: argparse.Namespace) -> int:
    """Ask the kernel for its table."""
    message = request(KnobGet, prefix=arguments.prefix)
    with Client(chosen_run(arguments).path) as client:
        answer = client.ask("ctl", message).message
    assert isinstance(answer, Knobs)
    if arguments.json:
        print_json(answer.model_dump())
        return 0
    rows = [["KNOB", "VALUE", "UNIT", "BOUNDS", "OWNER", "VERSION", "SINCE STEP", "REASON"]]
    for knob in answer.knobs:
        spec = knob.declaration
        bounds = "|".join(spec.choices) or f"{spec.low}..{spec.high}"
        since = "-" if knob.applied_step is None else str(knob.applied_step)
        value = f"{knob.value:.6g}" if isinstance(knob.value, float) else str(knob.value)
        rows.append(
            [spec.name, value, spec.unit, bounds, knob.owner or "-", str(knob.version), since, knob.reason or "-"]
        )
    print(table(rows))
    return 0
