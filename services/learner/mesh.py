"""How the ranks of a learner are arranged: copies of the parameters, and shards of each copy.

    rank = copy * shards + shard

Data is divided over all of them. `ddp_size` copies, each cut over what is left of the group: 1 copy is ZeRO-3, a copy
a rank is plain data parallelism.
"""

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from .orders import Orders
from .peers import ALONE, Peers
from .rank import Rank

NAMES = ("ddp", "fsdp")
TIMEOUT = timedelta(seconds=120)
"""A peer that stopped answering ends the group after this long; a dead one ends it at once."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """The arrangement of a group, this rank's peers in it and its device. Without `devices` it is one process."""

    device: torch.device
    peers: Peers = ALONE
    devices: DeviceMesh | None = None
    orders: Orders | None = None

    @property
    def leads(self) -> bool:
        """Whether this rank writes what there is one of."""
        return self.peers.rank == 0

    @classmethod
    def join(cls, rank: Rank, copies: int, device: str, timeout: timedelta = TIMEOUT) -> "Mesh":
        """Meet the other ranks where the environment says. Raises RuntimeError when they do not come.

        copies: of the parameters; they divide the group. device: as configured.
        """
        own = rank.device(device)
        if rank.world == 1:
            return cls(own)
        store, _, _ = next(rendezvous("env://", rank.rank, rank.world, timeout=timeout))
        backend = "nccl" if own.type == "cuda" else "gloo"
        if own.type == "cuda":
            torch.cuda.set_device(own)
        dist.init_process_group(
            backend, store=PrefixStore("group", store), rank=rank.rank, world_size=rank.world, timeout=timeout
        )
        devices = init_device_mesh(own.type, (copies, rank.world // copies), mesh_dim_names=NAMES)
        peers = Peers(rank.rank, rank.world, dist.group.WORLD)
        return cls(own, peers, devices, Orders(PrefixStore("orders", store)))
