"""Topic group: how ranks of a learner on other hosts come to its group, over TCP.

The learner binds at the address of its ticket, whose key encrypts and is the only admission (`messages/sockets.py`);
`midflight join` on each other host connects. Both messages are repeated and say all there is to say, so that none
matters by itself: a host tells what it has and what it runs, the answer is what it should run.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from .base import Count, Message, Name, Part, Text

Nonce = Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]*$")]
Short = Annotated[str, Field(max_length=300)]


class RankEnd(Part):
    """A rank's process that has ended."""

    rank: Annotated[Count, Field(description="its number in the group")]
    how: Annotated[Text, Field(description="exit code or signal, and its last line of output")]


class GroupHost(Message):
    """Host to learner: what is offered here, and what became of the ranks it was given; repeated twice a second."""

    KIND: ClassVar[str] = "group.host"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "host": "node-2", "version": "0.1.0", "torch": "2.13.0", "offers": 8, "generation": "9f3a",
        "ended": [{"rank": 11, "how": "killed by SIGKILL"}],
    }  # fmt: skip
    host: Annotated[Short, Field(description="name of the machine, for people")]
    version: Annotated[Short, Field(description="version of midflight there")]
    torch: Annotated[Short, Field(description="version of torch there")]
    offers: Annotated[int, Field(ge=0, le=1024, description="ranks it runs; 0: its even share")] = 0
    rank: Annotated[int | None, Field(ge=0, le=1023, description="RANK of torchrun; null: not by torchrun")] = None
    world: Annotated[int | None, Field(ge=1, description="WORLD_SIZE of torchrun; null: not by torchrun")] = None
    generation: Annotated[Nonce, Field(description="group whose ranks it runs or ran; empty: none")] = ""
    ended: Annotated[list[RankEnd], Field(max_length=1024, description="ranks of it that are no more")] = []
    leaving: Annotated[Text, Field(description="why it goes; empty: it stays")] = ""


class GroupPlace(Message):
    """Learner to host: which ranks of which group are to run there; none of an older group may."""

    KIND: ClassVar[str] = "group.place"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "run_id": "demo-1a2b3c4d", "run_dir": "/data/runs/demo-1a2b3c4d", "service": "learner", "said": "",
        "generation": "9f3a", "first": 8, "count": 8, "world": 16, "address": "10.0.0.1", "port": 41234,
        "files": {"config.json": "{}"},
    }  # fmt: skip
    run_id: Annotated[str, Field(max_length=200)]
    run_dir: Annotated[str, Field(max_length=4000, description="the run directory as the learner sees it")]
    service: Annotated[Name, Field(description="the service that is rank 0")]
    said: Annotated[Text, Field(description="what it waits for, or why it was refused; for people")] = ""
    refused: Annotated[bool, Field(description="there is no place for it, nor will be: leave")] = False
    left: Annotated[bool, Field(description="the learner leaves; a next one may come")] = False
    over: Annotated[bool, Field(description="nothing is left to train: leave")] = False
    generation: Annotated[Nonce, Field(description="the group, never the same twice; empty: run nothing")] = ""
    first: Annotated[Count, Field(description="first rank here")] = 0
    count: Annotated[Count, Field(description="ranks here")] = 0
    world: Annotated[Count, Field(description="ranks of the group")] = 0
    address: Annotated[Short, Field(description="where torch.distributed's store is")] = ""
    port: Annotated[int, Field(ge=0, le=65535, description="its port")] = 0
    files: Annotated[
        dict[str, Annotated[str, Field(max_length=240_000)]],
        Field(max_length=8, description="what ranks read of the run directory; empty: the host has it"),
    ] = {}


KINDS = (GroupHost, GroupPlace)
