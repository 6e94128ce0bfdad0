"""One rank of a group that shares sequences, by hand: everything `sequence_runs` computes; each rank prints its own.

RANK=.. WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. python sequence_rank.py SP WHAT...
"""

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from midflight.services.learner.group.mesh import Mesh, Sizes
from midflight.services.learner.group.rank import Rank
from support.group_runs import part
from support.sequence_runs import attention_errors, policy_errors


def main(size: int, names: list[str]) -> None:
    """Join, compute, print."""
    torch.set_num_threads(1)
    sp = Mesh.join(Rank.from_environment(), Sizes(sp=size), "cpu", timedelta(seconds=60)).sp
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
    }
    print(json.dumps({name: known[name]() for name in names}))
    part()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
