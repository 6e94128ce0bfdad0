"""midflight plan TOPOLOGY: memory of its devices and traffic of its trainer, without starting or loading anything.

From the model's configuration alone (config.json or `build`; weights and data are never read) and the keys of the
learner and rollouts, or of a trainer on rows. What cannot fit is refused with exit code 1, its largest term, and the
keys that would help.
"""

import argparse
import re
from dataclasses import asdict
from importlib import import_module
from typing import Any

import psutil

from midflight.kernel.mistake import UserMistake

from .common import positive, print_json, table
from .exits import FAILED, OK, USAGE, Stop
from .up import load

UNITS = "kmgt"
GIB, MIB = 1 << 30, 1 << 20
MODULES = ("plan", "remedies", "largest")


def options(parser: argparse.ArgumentParser) -> None:
    """The topology, its overlays and overrides, and what the devices have."""
    parser.add_argument("topology", help="a file, or the name of one that comes with midflight, such as demo")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="e.g. services.learner.ranks=64")
    parser.add_argument("-f", "--file", action="append", default=[], metavar="OVERLAY", help="merged over the topology")
    parser.add_argument(
        "--device-memory",
        metavar="SIZE",
        help="of a GPU, or of the host for a CPU, e.g. 80GiB or 80GB; default: what is here",
    )
    parser.add_argument(
        "--longest-row",
        type=positive,
        metavar="TOKENS",
        help="for sft, reward_model, dpo, distill: of a row, both texts of a pair together; default: a micro-batch",
    )
    parser.add_argument(
        "--largest", action="store_true", help="also the largest micro-batch and the longest sample that fit"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, in bytes")


def run(arguments: argparse.Namespace) -> int:
    """Exit 1 when a device cannot hold its part."""
    asked = None if arguments.device_memory is None else parsed(arguments.device_memory)
    loaded = load(arguments.topology, arguments.file, arguments.overrides, elsewhere=True)
    # By name: the kernel does not depend on services.
    plans, remedies, largest = (import_module(f"midflight.services.learner.planning.{m}") for m in MODULES)
    services = loaded.topology.services
    try:
        planner = plans.Planner(loaded.data["model"], services, None, arguments.longest_row)
        planner.memory = here(plans.on_gpu(planner.trainer.device)) if asked is None else asked
        if arguments.largest and planner.memory is None:
            raise Stop(USAGE, "--largest: the device's memory is not known: give --device-memory")
        found = planner.plan(planner.trainer)
        limits = largest.largest(planner) if arguments.largest else []
    except UserMistake as mistake:
        raise Stop(USAGE, str(mistake)) from mistake  # 1 is for what does not fit
    ways = [] if found.fits else remedies.remedies(planner, found)
    if arguments.json:
        print_json(as_json(found, ways) | ({"largest": [limit(one) for one in limits]} if limits else {}))
    else:
        print("\n".join(shown(arguments.topology, loaded.data["model"], found, ways, plans.FILL)))
        print("".join(f"\n{told(one, found.work.noun)}" for one in limits) + ("\n" if limits else ""), end="")
    return OK if found.fits else FAILED


def parsed(text: str) -> int:
    """80GiB or 512MiB, 80GB or 24.5GB, to bytes: units with an i are powers of 1024, those without of 1000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b)?", text.strip().lower())
    if not match:
        raise Stop(USAGE, f"--device-memory {text!r}: write a size such as 80GiB, 80GB or 24576MiB")
    if not match[2]:
        raise Stop(
            USAGE, f"--device-memory {text!r} has no unit: write {match[1]}GiB (of 1024) or {match[1]}GB (of 1000)"
        )
    found = int(float(match[1]) * (1024 if match[3] else 1000) ** (1 + UNITS.index(match[2])))
    if not found:
        raise Stop(USAGE, f"--device-memory {text!r} is no memory: write a size such as 80GiB")
    return found


def here(gpu: bool) -> int | None:
    """Bytes of a GPU of this machine, or of its memory; None when it has no GPU."""
    if not gpu:
        return int(psutil.virtual_memory().total)
    cuda = import_module("torch").cuda
    return int(cuda.get_device_properties(0).total_memory) if cuda.is_available() else None


def as_json(plan: Any, ways: list[Any]) -> dict[str, Any]:
    """All of it, in bytes."""
    layout, work = plan.layout, plan.work
    devices = [
        {"name": one.name, "terms": [asdict(term) for term in one.terms], "needs": one.needs, "memory": one.memory}
        | {"fits": one.fits, "judged": one.judged, "largest": one.largest.name}
        for one in plan.devices
    ]
    return {
        "parameters": plan.network.model.numel,
        "trained": sum(weight.numel for weight in plan.network.trained),
        "layout": asdict(layout) | {"shards": layout.shards, "data": layout.data},
        "step": asdict(work) | {"tokens_per_device": plan.tokens},
        "devices": devices,
        "sent": [asdict(flow) for flow in plan.flows],
        "fits": plan.fits,
        "remedies": [asdict(way) for way in ways],
    }


def shown(name: str, section: dict[str, Any], plan: Any, ways: list[Any], fill: float) -> list[str]:
    """Lines for people."""
    layout, work, model = plan.layout, plan.work, plan.network.model
    dtype = section["dtype"]
    adapters = sum(weight.numel for layer in plan.network.adapters for weight in layer)
    lines = [
        f"{name}: {model.numel:,} parameters ({dtype}) in {len(model.layers)} layers"
        + (f"; {adapters:,} of adapters train" if adapters else ""),
        f"ranks: {layout.ranks} = ddp {layout.copies} x fsdp {layout.shards} x tp {layout.tensor}"
        + (f", of the fsdp ranks sp {layout.sequence}" if layout.sequence > 1 else ""),
        f"a step: {work.samples:,} {work.noun} of at most {work.longest:,} tokens; updates: {work.updates}, "
        f"micro-batches of a rank in each: {work.rounds}, positions of one on a device: {plan.tokens:,}",
    ]
    for device in plan.devices:
        rows = [["", device.name, ""]]
        for term in device.terms:
            about = term.about if term.counted else f"{term.about}; not at the same time, not counted".lstrip("; ")
            rows.append([size(term.bytes), term.name, about])
        rows.append([size(device.needs), "at the peak", verdict(device, fill)])
        lines += ["", table([[cell.rjust(9), *rest] for cell, *rest in rows])]
    if plan.flows:
        rows = [["A RANK SENDS", "A MICRO-BATCH", "A STEP"]]
        rows += [[flow.name, size(flow.micro_batch), size(flow.step)] for flow in plan.flows]
        lines += ["", table(rows)]
    for device in plan.devices:
        if not device.fits:
            most = f"most of it is {device.largest.name}, {size(device.largest.bytes)}"
            lines += ["", f"{device.name}: does not fit; {most}"]
    for way in ways:
        keys = ", ".join(f"{key}: {str(value).lower()}" for key, value in way.keys.items())
        lines.append(f"{'it fits' if way.fits else 'it comes nearest'} with {keys}: {size(way.needs)}")
    return lines


def limit(one: Any) -> dict[str, Any]:
    """One of the largest sizes, in bytes."""
    return {
        "what": one.what,
        "count": one.count,
        "keys": one.keys,
        "needs": one.needs,
        "beyond": one.beyond_needs,
        "stopped": one.stopped and one.stopped.name,
    }


def told(one: Any, noun: str) -> str:
    """The same for people."""
    counted = f"{one.count:,} {noun}" if one.what == "micro-batch" else f"{one.count:,} tokens, alone in a micro-batch"
    keys = ", ".join(f"{key}: {value}" for key, value in one.keys.items())
    text = f"largest {one.what}: {counted}, {size(one.needs)} with {keys}" if keys else f"largest {one.what}: none"
    if one.stopped is None:
        return f"{text}\n  there is no use for more"
    step = "one more" if one.notch == 1 else f"{one.notch} tokens more"
    return f"{text}\n  {step} would need {size(one.beyond_needs)}; what grows is {one.stopped.name}"


def verdict(device: Any, fill: float) -> str:
    """What the device has, and whether that is enough."""
    if not device.judged:
        return "what it has is not known here, and not judged"
    if device.memory is None:
        return "the device's memory is not known: give --device-memory"
    return f"of {size(device.memory)}, {'fits' if device.fits else 'DOES NOT FIT'} (at most {fill:.0%} is planned)"


def size(number: int) -> str:
    """In GiB, or MiB below one."""
    return f"{number / GIB:,.1f} GiB" if number >= GIB else f"{number / MIB:,.1f} MiB"
