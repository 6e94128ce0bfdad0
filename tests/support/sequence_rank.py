"""One rank of a group that shares sequences, by hand: everything `sequence_runs` computes; each rank prints its own.

RANK=.. WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. python sequence_rank.py SP WHAT...
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from midflight.services.learner.mesh import Mesh
from midflight.services.learner.peers import Peers
from midflight.services.learner.rank import Rank
from support.group_runs import part
from support.sequence_runs import UPDATES, attention_errors, policy_errors, updates


def main(size: int, names: list[str]) -> None:
    """Join, compute, print. The ranks of a sequence are neighbours."""
    torch.set_num_threads(1)
    mesh = Mesh.join(Rank.from_environment(), 1, "cpu", timedelta(seconds=60))
    sp = place(mesh, [list(range(at, at + size)) for at in range(0, mesh.peers.count, size)])
    data = place(mesh, [list(range(at, mesh.peers.count, size)) for at in range(size)])
    known: dict[str, Callable[[], Any]] = {
        "float64": lambda: attention_errors(sp, torch.float64),
        "float32": lambda: attention_errors(sp, torch.float32),
        "bfloat16": lambda: attention_errors(sp, torch.bfloat16),
        "policy in bfloat16": lambda: policy_errors(sp, "", recompute=False, bf16=True),
        "policy": lambda: policy_errors(sp, "", recompute=False),
        "policy, recomputed": lambda: policy_errors(sp, "", recompute=True),
        "a head": lambda: policy_errors(sp, "head", recompute=False),
        "a head, detached": lambda: policy_errors(sp, "detached", recompute=False),
        "a model, recomputed": lambda: policy_errors(sp, "model", recompute=True),
        "updates": lambda: updates(replace(mesh, peers=data), sp, UPDATES),
    }
    print(json.dumps({name: known[name]() for name in names}))
    part(mesh.peers)


def place(mesh: Mesh, groups: list[list[int]]) -> Peers:
    """This rank's place in the one of the groups of ranks it is in."""
    made = [dist.new_group(ranks) for ranks in groups]
    at = next(index for index, ranks in enumerate(groups) if mesh.peers.rank in ranks)
    return Peers(groups[at].index(mesh.peers.rank), len(groups[at]), made[at])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
