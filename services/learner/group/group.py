"""The ranks that train together, as rank 0's process has them: alone, started here, or come from other hosts.

Any rank's end is the end of the group: rank 0 leaves with the reason, and the next generation begins from the newest
checkpoint, at a port of its own.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch.distributed as dist

from midflight.kernel.ports import free_port
from midflight.kernel.settings import Settings
from midflight.services.learner.base import C, TrainerBase

from .gathering import own_share
from .launch import Launched, contract
from .lead import Leading
from .meeting import Meeting
from .mesh import Mesh
from .ticket import network

CLOSE_S = 2.0
BLAME_S = 5.0
"""After a collective has failed, how long those it failed for may take to end; who has not by then hangs."""
LOOK_S = 0.05
MISSED = (
    "gloo",
    "NCCL",
    "TCPStore",
    "Connection closed",
    "Connection reset",
    "DistNetworkError",
    "DistStoreError",
    "DistBackendError",
)
"""Words of an error that another rank's end gives rise to."""
AGAIN = "the group begins again from the newest checkpoint"
T = TypeVar("T", bound=TrainerBase[Any])


class Group(Generic[T]):
    """A `trainer` that moves all ranks, and the processes of those that are not this one.

    alone, lead: its class in a process by itself, and as rank 0 of several. meeting: with the other hosts.
    Raises ValueError when model and configuration do not go together, RuntimeError when the others do not come.
    """

    def __init__(
        self,
        config: C,
        settings: Settings,
        root: Path,
        alone: type[T],
        lead: type[T],
        meeting: Meeting | None = None,
    ) -> None:
        self._limit, self._world = config.collective_timeout_s, config.ranks
        self._others: Launched | None = None
        self._meeting = meeting
        if config.ranks > 1:
            self._launch(own_share(config), settings)
        mesh = Mesh.configured(config, self.trouble)
        make = alone if mesh.orders is None else lead
        self.trainer = make(config, settings.model, settings.seed, root, mesh)
        if mesh.orders is not None:
            self.trainer.reconfigure(config)  # fields set while the run went on are not in the others' files

    def _launch(self, here: int, settings: Settings) -> None:
        """Start this host's other ranks, and make this process rank 0."""
        if met := self._meeting:
            common = contract(self._world, met.address, met.port, met.generation) | network(met.address)
        else:
            common = contract(self._world, "127.0.0.1", free_port(), secrets.token_hex(8))
        os.environ.update(common | {"RANK": "0", "LOCAL_RANK": "0"})
        if here > 1:
            self._others = Launched(range(1, here), 1, settings.run_dir / "logs", settings.name, os.environ)

    def watches(self) -> dict[int, Callable[[], None]]:
        """Descriptors that are readable when a rank has ended, or a save."""
        saver = self.trainer.saver
        ends = dict.fromkeys(self._others.handles.values(), self._ended) if self._others else {}
        if self._meeting:
            ends[self._meeting.handle] = self._ended
        return {**ends, saver.done: saver.heard}

    @property
    def places(self) -> str:
        """Which processes its ranks are, for people; empty when there is only this one."""
        if self._world == 1:
            return ""
        pids = [os.getpid(), *(self._others.pids if self._others else [])]
        here = f"{f'0-{len(pids) - 1}' if len(pids) > 1 else '0'} of {self._world}"
        elsewhere = ", the others on other hosts" if len(pids) < self._world else ""
        return f"{here} (pids {' '.join(map(str, pids))}){elsewhere}"

    def trouble(self) -> str:
        """Which rank or host is no more, and how; empty while all are there."""
        own = self._others.ended() if self._others else {}
        ends = {rank: f"rank {rank} of the learner's {self._world} is gone ({how})" for rank, how in own.items()}
        ends |= self._meeting.ends() if self._meeting else {}
        return min(ends.values(), key=followed) if ends else ""

    def _ended(self) -> None:
        """Between steps; in a step the collective in which it is missed says so first."""
        if why := self.trouble():
            raise RuntimeError(f"{why}; {AGAIN}")

    def explained(self, error: RuntimeError, beat: Callable[[], None]) -> str:
        """Why a collective failed: a rank that has ended, or the one that hangs. Empty for other errors.

        Those for whom it failed, too, end; who has not ended a moment later did not answer, or its host is lost.
        beat: called while that is found out.
        """
        if self._world == 1 or not of_a_collective(error):
            return ""
        until = time.monotonic() + BLAME_S
        while (living := self._living()) and (not (why := self.trouble()) or followed(why)):
            if time.monotonic() > until:
                names = ", ".join(f"rank {rank}{host and f' on host {host}'}" for rank, host in living.items())
                how = f"did not answer within {self._limit:g} s (collective_timeout_s)" if late(error) else "is lost"
                return f"{names} of the learner's {self._world} {how}: {str(error).splitlines()[0][:200]}; {AGAIN}"
            time.sleep(LOOK_S)
            beat()
        return f"{self.trouble() or 'the other ranks are gone'}; {AGAIN}"

    def _living(self) -> dict[int, str]:
        """Ranks that have not ended, and their hosts, where that is not this one."""
        ended = self._others.ended() if self._others else {}
        here = {rank: "" for rank in (self._others.handles if self._others else {}) if rank not in ended}
        return here | (self._meeting.living() if self._meeting else {})

    def close(self, over: bool = False) -> None:
        """All leave; a checkpoint that is almost on disk gets there. over: nothing is left to train."""
        self.trainer.profile.close()
        with contextlib.suppress(RuntimeError):
            self.trainer.saver.settle(CLOSE_S)
        if isinstance(self.trainer, Leading):
            self.trainer.leave()
        if self._meeting:
            self._meeting.close(over)
        if self._others:
            self._others.close()


def of_a_collective(error: RuntimeError) -> bool:
    """Whether it is torch.distributed that gave up: gloo raises plain RuntimeErrors with its file names in them."""
    return isinstance(error, dist.DistError) or followed(str(error))


def late(error: RuntimeError) -> bool:
    """Whether it gave up waiting, as gloo, NCCL and stores say it."""
    return any(word in str(error).lower() for word in ("timed out", "timeout"))


def followed(how: str) -> bool:
    """Whether it is the end of a rank that missed another one, and so not the first to end."""
    return any(word in how for word in MISSED)
