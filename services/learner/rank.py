"""This process's place in the learner group, by torchrun's environment contract.

`RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` are what torchrun, Slurm or our own launcher set.
Without them the group is this one process, and nothing of torch.distributed is touched. Rank 0 alone speaks on the bus.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=120)
"""A peer that stopped answering ends the group after this long; a dead one ends it at once."""


@dataclass(frozen=True, slots=True)
class Rank:
    """Global rank and group size."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Rank":
        """Read the contract. Raises ValueError when it is incomplete or asks for more than one rank."""
        if "WORLD_SIZE" not in environ:
            return cls()
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environ]
        if missing:
            raise ValueError(f"WORLD_SIZE is set but {', '.join(missing)} is not: start the learner by torchrun")
        found = cls(int(environ["RANK"]), int(environ["WORLD_SIZE"]))
        if found.world != 1:
            raise ValueError(f"WORLD_SIZE={found.world}: this version trains with one rank; set it to 1")
        return found

    def join(self, device: torch.device) -> bool:
        """Join the process group (nccl on a GPU, else gloo) if there is a contract; -> whether there is one."""
        if "WORLD_SIZE" not in os.environ or dist.is_initialized():
            return dist.is_initialized()
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=self.rank, world_size=self.world, timeout=TIMEOUT)
        return True


def over_ranks(*counts: int) -> tuple[int, ...]:
    """Each count summed over the group, so that a denominator is that of the whole update; as they are without one."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return counts
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    summed = torch.tensor(counts, dtype=torch.int64, device=device)
    dist.all_reduce(summed)
    return tuple(summed.tolist())
