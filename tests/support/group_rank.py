"""The ranks of a learner group: the cases given, trained by the real update; rank 0 prints what came out.

    WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. [CHECKPOINTS=.. [RESUME=1]] python group_rank.py DDP,SP,TP CASE...

See `group_runs` for the cases. One process imports and is then as many as there are ranks.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch

from midflight.kernel.process import die_with_parent
from midflight.services.learner.group.mesh import Mesh, Sizes
from midflight.services.learner.group.rank import Rank
from support.group_runs import CASES, part, resumed, went_on


def main(sizes: Sizes, names: list[str]) -> None:
    """Join, train every case, print."""
    torch.set_num_threads(1)
    first = os.getpid()
    rank = next((rank for rank in range(1, int(os.environ["WORLD_SIZE"])) if os.fork() == 0), 0)
    if rank:
        die_with_parent(first)
    os.environ["RANK"] = str(rank)
    mesh = Mesh.join(Rank.from_environment(), sizes, "cpu", timedelta(seconds=60))
    root = os.environ.get("CHECKPOINTS")
    if root and "RESUME" in os.environ:
        found = {name: resumed(CASES[name], mesh, Path(root) / name) for name in names}
    else:
        found = {name: went_on(CASES[name], mesh, Path(root) / name if root else None) for name in names}
    if mesh.leads:
        print(json.dumps(found))
    part()


if __name__ == "__main__":
    main(Sizes(*map(int, sys.argv[1].split(","))), sys.argv[2:])
