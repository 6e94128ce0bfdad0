"""One rank of a learner group: the cases it is given, trained by the real update; rank 0 prints what came out.

    RANK=.. WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. [CHECKPOINTS=..] python group_rank.py COPIES CASE...

See `group_runs` for the cases, and for who starts it.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch

from midflight.services.learner.mesh import Mesh
from midflight.services.learner.rank import Rank
from support.group_runs import CASES, part, went_on


def main(copies: int, names: list[str]) -> None:
    """Join, train every case, print."""
    torch.set_num_threads(1)
    mesh = Mesh.join(Rank.from_environment(), copies, "cpu", timedelta(seconds=60))
    root = os.environ.get("CHECKPOINTS")
    found = {name: went_on(CASES[name], mesh, Path(root) / name if root else None) for name in names}
    if mesh.peers.rank == 0:
        print(json.dumps(found))
    part(mesh.peers)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
