"""This process's place in the learner group, by torchrun's environment contract.

`RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` are what torchrun, Slurm or our own `launch` set; `launch` adds
`MIDFLIGHT_GROUP`, which no other group has, and `MIDFLIGHT_APART` on a host that does not see the run directory: which
rank fetches checkpoints there.
Without them the group is this one process, and nothing of torch.distributed is touched. Rank 0 alone speaks on the bus.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from midflight.services.model.open import pick_device

TORCHRUN_STORE: Final = "TORCHELASTIC_USE_AGENT_STORE"
"""Whether ranks that torchrun has started itself, as a test does, meet at its own store."""


@dataclass(frozen=True, slots=True)
class Rank:
    """Global rank and group size, and the place among the ranks of this host.

    meets: host and port of the group's store, which lives in this process if it `serves`. group: what no other group
    has. apart: empty where the run directory is seen; else whether this rank is to fetch checkpoints for its host
    (`fetches`) or another does (`waits`).
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    meets: tuple[str, int] = ("", 0)
    serves: bool = False
    group: str = ""
    apart: str = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Rank":
        """Read the contract. Raises ValueError when it is incomplete."""
        if "WORLD_SIZE" not in environ:
            return cls()
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environ]
        if missing:
            raise ValueError(f"WORLD_SIZE is set but {', '.join(missing)} is not: start the learner by torchrun")
        rank = int(environ["RANK"])
        world, local = int(environ["WORLD_SIZE"]), int(environ.get("LOCAL_RANK", rank))
        fetching = environ.get("MIDFLIGHT_APART")
        apart = "" if fetching is None else "fetches" if int(fetching) == rank else "waits"
        meets = (environ["MASTER_ADDR"], int(environ["MASTER_PORT"]))
        serves = rank == 0 and environ.get(TORCHRUN_STORE) != "True"
        return cls(rank, world, local, meets, serves, environ.get("MIDFLIGHT_GROUP", ""), apart)

    def device(self, name: str) -> torch.device:
        """The device of a configuration, one for each rank of a host. Raises UserMistake for a GPU that is not there.

        In a group `auto` and `cuda` are the GPU with the number of the rank on its host.
        """
        chosen = pick_device(name)
        if self.world == 1 or chosen.type != "cuda":
            return chosen
        return pick_device(f"cuda:{self.local}")
