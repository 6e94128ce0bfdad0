"""`midflight up` under torchrun: the same command on every host, rank 0 of which is the run and the others its ranks.

What torchrun says in the environment is taken out of it, for it is for the learner alone: other services may hold
libraries that would act on it, and torchrun's own meeting point outlives a group of ranks, and so mixes one with the
next. The learner is told by two variables of our own.
"""

import os
from collections.abc import MutableMapping
from typing import Final

WORLD_SIZE: Final = "MIDFLIGHT_WORLD_SIZE"
"""How many processes torchrun has started."""
MEET: Final = "MIDFLIGHT_MEET"
"""Its address of the first host."""
_SAYS: Final = frozenset(
    f"{of}{what}" for of in ("", "LOCAL_", "GROUP_", "ROLE_") for what in ("RANK", "WORLD_SIZE")
) | {"MASTER_ADDR", "MASTER_PORT", "ROLE_NAME"}


def world(environ: MutableMapping[str, str] = os.environ) -> int:
    """How many processes torchrun has started; 0 without it, or when it is this one alone."""
    several = int(environ.get("WORLD_SIZE", "1"))
    return several if several > 1 and "RANK" in environ else 0


def rank(environ: MutableMapping[str, str] = os.environ) -> int:
    """This process's number among them; 0 also without torchrun."""
    return int(environ["RANK"]) if world(environ) else 0


def taken(environ: MutableMapping[str, str] = os.environ) -> None:
    """Put torchrun's words into ours, if there are several processes."""
    if not world(environ):
        return
    environ[WORLD_SIZE] = environ["WORLD_SIZE"]
    if address := environ.get("MASTER_ADDR"):
        environ[MEET] = address
    for name in list(environ):
        if name in _SAYS or name.startswith("TORCHELASTIC_"):
            del environ[name]
