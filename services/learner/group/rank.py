"""This process's place in the learner group, by torchrun's environment contract.

`RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` are what torchrun, Slurm or our own `launch` set.
Without them the group is this one process, and nothing of torch.distributed is touched. Rank 0 alone speaks on the bus.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from midflight.services.model.open import pick_device


@dataclass(frozen=True, slots=True)
class Rank:
    """Global rank and group size, and the place among the ranks of this host."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Rank":
        """Read the contract. Raises ValueError when it is incomplete."""
        if "WORLD_SIZE" not in environ:
            return cls()
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environ]
        if missing:
            raise ValueError(f"WORLD_SIZE is set but {', '.join(missing)} is not: start the learner by torchrun")
        rank = int(environ["RANK"])
        return cls(rank, int(environ["WORLD_SIZE"]), int(environ.get("LOCAL_RANK", rank)))

    def device(self, name: str) -> torch.device:
        """The device of a configuration, one for each rank of a host. Raises UserMistake for a GPU that is not there.

        In a group `auto` and `cuda` are the GPU with the number of the rank on its host.
        """
        chosen = pick_device(name)
        if self.world == 1 or chosen.type != "cuda":
            return chosen
        return pick_device(f"cuda:{self.local}")
