"""How the ranks of other hosts come to be there before a group is made; nothing of it where all are on this host."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from midflight.kernel.mistake import UserMistake
from midflight.kernel.settings import Settings
from midflight.kernel.torchrun import MEET, WORLD_SIZE
from midflight.services.learner.training_config import TrainingConfig

from .meeting import Ground, Meeting
from .ticket import Ticket

MOST: Final = 220_000
"""Bytes of what ranks read of the run directory, which travels in one message."""


def started_elsewhere() -> int:
    """Processes that torchrun has started, this one's `midflight up` among them; 0 when it has not."""
    return int(os.environ.get(WORLD_SIZE, "0"))


def own_share(config: TrainingConfig) -> int:
    """Ranks of the first host that this process starts, itself among them; 1 when torchrun has started the others."""
    return 1 if started_elsewhere() else config.ranks // config.hosts


def gathered(config: TrainingConfig, settings: Settings, turn: Callable[[str, Path], None]) -> Meeting | None:
    """Wait for the ranks of other hosts, if the group has any, telling `turn` what is lacking, and the ticket.

    Raises UserMistake when they do not come in time or cannot.
    """
    here = own_share(config)
    if here == config.ranks:
        return None
    path = Path(config.ticket or settings.run_dir / f"{settings.name}.ticket")
    ticket = Ticket.kept(path, config.meet or os.environ.get(MEET))
    ground = Ground(settings.run_id, str(settings.run_dir), settings.name, files(settings.run_dir))
    share = config.ranks // config.hosts
    meeting = Meeting(ticket, ground, config.ranks, here, share, started_elsewhere() > 0)
    try:
        meeting.gather(config.join_timeout_s, lambda lacking: turn(lacking, path))
    except UserMistake:
        meeting.close(over=False)
        raise
    return meeting


def files(run_dir: Path) -> dict[str, str]:
    """What ranks read of the run directory besides checkpoints. Raises UserMistake when it is too much to be told."""
    found = {name: (run_dir / name).read_text() for name in ("config.json", "run.json")}
    if part := os.environ.get("MIDFLIGHT_PART"):
        found[f"parts/{Path(part).name}"] = Path(part).read_text()
    if (size := sum(len(text.encode()) for text in found.values())) > MOST:
        raise UserMistake(f"the topology is too long to be told to other hosts: {size} bytes of at most {MOST}")
    return found
