"""The process group in which this process, rank 0, broadcasts weights to the ranks of one server."""

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import distributed_c10d as c10d


class Group:
    """Rank 0 of `ranks` + 1. `join` blocks until the server, told by `/init_weights_update_group`, has joined too."""

    def __init__(self, ranks: int, device: torch.device, limit_s: float) -> None:
        self.name = f"midflight-{os.getpid()}-{os.urandom(4).hex()}"
        self.ranks, self.device = ranks, device
        self.backend = "nccl" if device.type == "cuda" else "gloo"
        self._limit = timedelta(seconds=limit_s)
        self.store = TCPStore("127.0.0.1", 0, ranks + 1, is_master=True, timeout=self._limit, wait_for_workers=False)
        self.group: dist.ProcessGroup | None = None

    def invitation(self) -> dict[str, object]:
        """The body of `/init_weights_update_group`."""
        return {
            "master_address": "127.0.0.1",
            "master_port": self.store.port,
            "rank_offset": 1,
            "world_size": self.ranks + 1,
            "group_name": self.name,
            "backend": self.backend,
        }

    def join(self) -> None:
        """Make the group beside, not as, the default one: torch has no public call for that. Raises RuntimeError."""
        store = PrefixStore(self.name, self.store)
        made, _ = c10d._new_process_group_helper(
            self.ranks + 1,
            0,
            [],
            c10d.Backend(self.backend),
            store,
            group_name=c10d.GroupName(self.name),
            timeout=self._limit,
        )
        assert isinstance(made, dist.ProcessGroup)
        c10d._world.pg_group_ranks[made] = {rank: rank for rank in range(self.ranks + 1)}
        self.group = made

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Send in order; back when all are sent. Raises RuntimeError when the others are gone."""
        assert self.group is not None
        for tensor in tensors:
            dist.broadcast(tensor.to(self.device).contiguous(), 0, group=self.group)

    def close(self) -> None:
        """Leave; the server is gone or has left."""
        if self.group is not None:
            c10d.destroy_process_group(self.group)
            self.group = None
