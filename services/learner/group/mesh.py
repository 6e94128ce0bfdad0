"""How the ranks of a learner are arranged: by what they divide among them.

    rank = ((copy * fsdp + shard) * sp + part) * tp + slice

ddp     copies of the parameters
fsdp    shards of a copy, and micro-batches of a batch; so do the copies: ddp * fsdp ranks of data
sp      parts of the sequences of one micro-batch; they shard the parameters as well
tp      slices of the matrices and of the vocabulary
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from midflight.services.learner.checkpoints.ferry import Ferry
from midflight.services.learner.checkpoints.reports import Reports
from midflight.services.learner.training_config import TrainingConfig
from midflight.services.model.stack import decoder_layers

from .orders import Orders
from .peers import ALONE, Peers, Place
from .rank import Rank
from .sharding import shard
from .tensor_parallel import slice_model, whole_on_each

FORM_S = 120.0
"""How long ranks may take to come, each of which imports torch and may meet a GPU first."""
LOOK_S = 0.05
WORK, PARAMETERS = ("data", "sp", "tp"), ("ddp", "fsdp", "tp")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the dimensions; fsdp is what is left of the group."""

    ddp: int = 1
    sp: int = 1
    tp: int = 1

    def fsdp(self, world: int) -> int:
        """Raises ValueError when the others do not divide the group."""
        taken = self.ddp * self.sp * self.tp
        if world % taken:
            raise ValueError(
                f"ddp_size {self.ddp} x sp_size {self.sp} x tp_size {self.tp} = {taken} does not divide the group of "
                f"{world} ranks: set ranks to a multiple of {taken}, or the sizes to what divides {world}"
            )
        return world // taken


@dataclass(frozen=True, slots=True)
class Mesh:
    """The arrangement of a group, this rank's place in it and its device. Without `devices` it is one process.

    devices: (ddp, fsdp * sp, tp), over which parameters are cut.
    """

    device: torch.device
    peers: Peers = ALONE
    sp: Place = ALONE
    tp: Place = ALONE
    devices: DeviceMesh | None = None
    orders: Orders | None = None
    reports: Reports | None = None
    ferry: Ferry | None = None

    @property
    def leads(self) -> bool:
        """Whether this rank writes what there is one of."""
        return not (self.peers.rank or self.sp.rank or self.tp.rank)

    @classmethod
    def configured(cls, config: TrainingConfig, trouble: Callable[[], str] = str) -> Self:
        """Meet the others of the environment's contract. Raises as `join`."""
        sizes = Sizes(config.ddp_size, config.sp_size, config.tp_size)
        limit = timedelta(seconds=config.collective_timeout_s)
        return cls.join(Rank.from_environment(), sizes, config.device, limit, trouble, config.optimizer_offload)

    @classmethod
    def join(
        cls,
        rank: Rank,
        sizes: Sizes,
        device: str,
        timeout: timedelta,
        trouble: Callable[[], str] = str,
        host: bool = False,
    ) -> Self:
        """Meet the other ranks where the environment says. Raises RuntimeError when they do not come, and ValueError
        for sizes that do not divide the group.

        device: as configured. timeout: of every collective; a peer that stopped answering ends the group after it, a
        dead one at once. trouble: what rank 0 knows of a rank that has ended before it came; empty: nothing. host: what
        is cut will be in host memory, whatever the device.
        """
        sizes.fsdp(rank.world)
        own = rank.device(device)
        if rank.world == 1:
            return cls(own)
        found: Any = TCPStore(*rank.meets, rank.world, rank.serves, timedelta(seconds=FORM_S), wait_for_workers=False)
        found.set_timeout(timeout)
        store = PrefixStore(rank.group or "group", found)
        apart = _met(store, rank, trouble)
        backend = "gloo" if own.type == "cpu" else "cpu:gloo,cuda:nccl" if host else "nccl"
        if own.type == "cuda":
            torch.cuda.set_device(own)
        dist.init_process_group(
            backend, store=PrefixStore("group", store), rank=rank.rank, world_size=rank.world, timeout=timeout
        )
        saves = PrefixStore(rank.group or "group", found.clone())
        reports = Reports(PrefixStore("saves", saves), rank.rank, rank.world)
        ferry = Ferry(PrefixStore("ferry", store), rank.rank, apart)
        return cls.arranged(own, sizes, Orders(PrefixStore("orders", store)), reports, ferry)

    @classmethod
    def arranged(
        cls,
        device: torch.device,
        sizes: Sizes,
        orders: Orders | None = None,
        reports: Reports | None = None,
        ferry: Ferry | None = None,
    ) -> Self:
        """The ranks of the default process group."""
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)  # warns of each norm
        fsdp = sizes.fsdp(dist.get_world_size())

        def view(*shape: int, names: tuple[str, ...]) -> DeviceMesh:
            return init_device_mesh(device.type, shape, mesh_dim_names=names)

        work = view(sizes.ddp * fsdp, sizes.sp, sizes.tp, names=WORK)
        data, sp, tp = ((work.get_local_rank(name), work[name].size(), work.get_group(name)) for name in WORK)
        devices = view(sizes.ddp, fsdp * sizes.sp, sizes.tp, names=PARAMETERS)
        return cls(device, Peers(*data), Place(*sp), Place(*tp), devices, orders, reports, ferry)

    def meet(self) -> None:
        """Wait for all ranks."""
        if self.devices:
            dist.barrier()

    def anywhere(self, here: bool) -> bool:
        """Whether any rank has found something; all must ask."""
        return Peers(count=dist.get_world_size()).total([float(here)]) > 0 if self.devices else here

    def cut(self, module: nn.Module, lm: Any, *, bf16: bool = False, host: bool = False) -> None:
        """Cut every parameter of `module`, which is, or has in it, the causal model `lm`, or none.

        bf16: its layers compute under autocast. host: its parts are kept in host memory. Raises ValueError for a model
        that cannot be sliced.
        """
        if not self.devices:
            return
        if self.tp.count > 1:
            if lm:
                slice_model(lm, self.devices["tp"])
            whole_on_each(module, self.devices["tp"])
        layers = decoder_layers(lm) if lm else []
        shard(module, layers, self.devices["ddp", "fsdp"], bf16=bf16, host=host)


def _met(store: Store, rank: Rank, trouble: Callable[[], str]) -> dict[int, str]:
    """Say that this rank is here; rank 0 waits until all are, unless one has ended. -> Who does not see the run
    directory, as far as this rank needs to know."""
    store.set(f"here {rank.rank}", rank.apart)
    if rank.rank:
        return {rank.rank: rank.apart} if rank.apart else {}
    keys = [f"here {other}" for other in range(rank.world)]
    until = time.monotonic() + FORM_S
    while not store.check(keys):
        if why := trouble():
            raise RuntimeError(why)
        if time.monotonic() > until:
            late = ", ".join(str(other) for other, key in enumerate(keys) if not store.check([key]))
            raise RuntimeError(f"rank {late} of {rank.world} did not come within {FORM_S:g} s")
        time.sleep(LOOK_S)  # the store's own wait fills the log when it ends without them
    said = {other: store.get(key).decode() for other, key in enumerate(keys)}
    return {other: apart for other, apart in said.items() if apart}
