"""The updates of `gpu_learner` by a group of ranks of this host against one process, for `gpu.py`.

Ranks meet by torchrun's environment contract, as a learner's do: NCCL on GPUs, one rank a device; gloo on CPUs.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import torch
import torch.distributed as dist
from gpu_learner import Row, batch, checked, policy

from midflight.kernel.ports import free_port
from midflight.services.learner.config import LearnerConfig
from midflight.services.learner.group.mesh import Mesh
from midflight.services.learner.group.sharding import wholes
from midflight.services.learner.network.policy import Policy
from midflight.services.learner.objectives.sft import sft_update
from midflight.services.learner.optimizers.optim import OptimSettings, PolicyOptimizer
from midflight.services.learner.settings import RlSettings
from midflight.services.learner.step import rl_update

WAIT_S = 300
BF16 = 3e-2
FLOAT32 = 1e-4


def meshes(ranks: int) -> dict[str, dict[str, int]]:
    """Those that a number of ranks makes, by name."""
    found = {f"fsdp {ranks}": {}, f"ddp {ranks}": {"ddp_size": ranks}, "tp 2": {"tp_size": 2}}
    if ranks % 4 == 0:
        found["ddp 2"] = {"ddp_size": 2}
        found["sp 2, tp 2"] = {"sp_size": 2, "tp_size": 2}
    return found | {"sp 2": {"sp_size": 2}}


def compare(device: str, ranks: int) -> list[Row]:
    """Gradient norms of three updates of each kind, by each mesh. Sequence ranks on a GPU attend in bfloat16."""
    rows = []
    for name, sizes in meshes(ranks).items():
        bf16 = device == "cuda" and "sp_size" in sizes
        found = spawned(device, ranks, {**sizes, "bf16": bf16})
        wanted = spawned(device, 1, {"bf16": bf16})
        gap = max(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True))
        rows.append(checked(f"{ranks} ranks, {name}: norms", gap, BF16 if bf16 else FLOAT32))
    return rows


def spawned(device: str, ranks: int, sizes: dict[str, Any]) -> list[float]:
    """What rank 0 of so many processes found. Raises SystemExit when one fails."""
    meeting = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, __file__, device, json.dumps(sizes)]
    group = [
        subprocess.Popen(command, env={**os.environ, **meeting, "RANK": str(rank)}, stdout=subprocess.PIPE)
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=WAIT_S)[0] for process in group]
    finally:
        for process in group:
            process.kill()
    if any(process.returncode for process in group):
        raise SystemExit(f"a rank of {sizes} failed")
    return [float(value) for value in json.loads(said[0].splitlines()[-1])]


def rank(device: str, sizes: dict[str, Any]) -> None:
    """One rank: three updates of each kind; rank 0 prints their gradient norms and the norm of all weights."""
    bf16, ranks = sizes.pop("bf16"), int(os.environ["WORLD_SIZE"])
    mesh = Mesh.configured(LearnerConfig(device=device, ranks=ranks, collective_timeout_s=WAIT_S, **sizes))
    norms = []
    for kind in ("sft", "rl"):
        plain = policy("cpu").lm.to(mesh.device)
        it = Policy(plain, bf16=bf16, sp=mesh.sp)
        mesh.cut(it, it.lm)
        optimizer = PolicyOptimizer(it, OptimSettings(name="sgd", lr=1e-2, weight_decay=0.0, warmup_steps=0))
        settings = RlSettings(max_length_per_device=512, max_new_tokens=256)
        for _ in range(3):
            if kind == "sft":
                report = sft_update(it, optimizer, batch().documents, 512, mesh.peers)
            else:
                report = rl_update(it, None, optimizer, batch(), settings, peers=mesh.peers)
            norms.append(report.metrics["grad_norm"])
        weights = wholes(it.lm.state_dict()).values()
        norms.append(float(torch.stack([w.detach().float().norm() for w in weights]).norm()))
    if mesh.leads:
        print(json.dumps(norms), flush=True)
    mesh.meet()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("device")
    parser.add_argument("sizes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rank(options.device, json.loads(options.sizes))
