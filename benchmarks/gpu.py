"""Every check and timing that needs a GPU, in one call and one table: `python benchmarks/gpu.py`.

    python benchmarks/gpu.py [--device cpu] [--only PART ...] [--ranks N] [--quick]

Parts: estimators (against float64 on the CPU, NaN and all; time over a device copy), kernels (packed attention, blocks
of the ring, the chunked head: against the CPU's), updates (SFT and RL: loss, gradient norm and weights against the
CPU's), engine (greedy tokens against the CPU's), group (the updates on as many ranks as there are GPUs, over NCCL, in
every mesh that this makes, against one process), mfu (a 0.6B-class model at 16k and 65k, `learner_mfu.py`).

`--device cpu` rehearses all but the estimators with a CPU in the GPU's place, over gloo and with a small model: what a
test does. Exits 1 when a check fails, 2 without a GPU. The last line is JSON.
"""

import argparse
import json
import sys
from typing import Any

import gpu_estimators
import gpu_group
import gpu_learner
import learner_mfu
import torch
from common import machine, show

Row = dict[str, Any]
LENGTHS = (16_384, 65_536)


def estimators(options: argparse.Namespace) -> list[Row]:
    """Correctness in words; milliseconds by shape."""
    if options.device == "cpu":
        return []
    wrong = gpu_estimators.check_estimators()
    rows = [{"what": "estimators", "measured": "; ".join(wrong) or "as on the CPU", "ok": not wrong}]
    for one in [] if options.quick else gpu_estimators.speed():
        what = f"{one['name']} {one['shape']}, over a device copy"
        rows.append({"what": what, "measured": f"{one['ms']:.3f} ms, {one['over_copy']:.2f}"})
    return rows


def kernels(options: argparse.Namespace) -> list[Row]:
    """Attention and the head."""
    return gpu_learner.kernels(options.device)


def updates(options: argparse.Namespace) -> list[Row]:
    """Of the trainers."""
    return gpu_learner.updates(options.device)


def engine(options: argparse.Namespace) -> list[Row]:
    """The embedded one."""
    return gpu_learner.engine(options.device)


def group(options: argparse.Namespace) -> list[Row]:
    """Ranks of one host."""
    ranks = options.ranks or (torch.cuda.device_count() if options.device == "cuda" else 2)
    if ranks == 1:
        return [{"what": "group", "measured": "one GPU: NCCL takes one rank a device; nothing to compare"}]
    return gpu_group.compare(options.device, ranks)


def mfu(options: argparse.Namespace) -> list[Row]:
    """Of the trainers' updates."""
    small = options.device == "cpu"
    rows = []
    for length in (64,) if small else LENGTHS[:1] if options.quick else LENGTHS:
        shape, cap = ("5m", 128) if small else ("0.6b", length)
        for one in learner_mfu.equal(options.device, shape, length, cap, bf16_only=not small):
            what = f"{one['what']}, {shape} at {length}, {one['precision']}"
            rows.append({"what": what, "measured": f"{one['tokens_per_s']:,} tokens/s, MFU {100 * one['mfu']:.1f} %"})
    return rows


PARTS = {f.__name__: f for f in (estimators, kernels, updates, engine, group, mfu)}


def main() -> int:
    """Run the parts, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--ranks", type=int, default=0, help="one a GPU when omitted; two on a CPU")
    parser.add_argument("--quick", action="store_true", help="checks, and the shorter timings")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU")
        return 2
    rows: list[Row] = []
    for name in options.only:
        rows += PARTS[name](options)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    show([("what", "measured", "allowed", ""), *(line(row) for row in rows)])
    wrong = [row["what"] for row in rows if not row.get("ok", True)]
    print(json.dumps({"device": name, "machine": machine(), "rows": rows, "wrong": wrong}))
    return bool(wrong)


def line(row: Row) -> tuple[str, str, str, str]:
    """Of the table."""
    measured = row["measured"] if isinstance(row["measured"], str) else f"{row['measured']:.1e}"
    allowed = f"{row['allowed']:.0e}" if "allowed" in row else "-"
    return row["what"], measured, allowed, "" if row.get("ok", True) else "WRONG"


if __name__ == "__main__":
    sys.exit(main())
