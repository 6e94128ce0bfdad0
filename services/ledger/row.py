"""One sample as the ledger knows it, its name, and what a worker can say about it."""

from dataclasses import dataclass, field

from .states import Split, State

EVAL_BASE = 1 << 40
"""Evaluation samples have ids from here on; training ids stay below."""


def train_id(group: int, member: int, group_size: int) -> int:
    """Return the id of training sample `member` of `group`: the same in every run and after every restart."""
    return group * group_size + member


def eval_id(round_: int, member: int, round_size: int) -> int:
    """Return the id of evaluation sample `member` (also its prompt) of round `round_`."""
    return EVAL_BASE + round_ * round_size + member


@dataclass(slots=True)
class Row:
    """The state of one sample.

    group: training group, or evaluation round.
    epoch: raised by every grant and every revocation.
    done: for each stage the epoch of the answer that was accepted, 0 when none; it makes a repeated answer `ok`.
    past: the accepted epochs of earlier turns, two a turn: its generation, and the tools that answered it.
    strikes: begun tries of the present stage that ended with their worker.
    holder, begun, solo: the present lease.
    min_version: the oldest policy version among its tokens; of an evaluation sample first the version to measure.
    bytes: size of the stored trajectory. rewards: JSON object of floats, keys sorted.
    step, batch, cohort: the optimizer step that trained it, the batch it is in, the cohort it is generated with.
    closed: settled for ever and no longer held in memory.
    """

    id: int
    group: int
    split: Split
    state: State = State.ISSUED
    epoch: int = 0
    done: list[int] = field(default_factory=lambda: [0, 0, 0])
    past: tuple[int, ...] = ()
    strikes: int = 0
    holder: str | None = None
    begun: bool = False
    solo: bool = False
    min_version: int = -1
    bytes: int = 0
    rewards: str = ""
    why: str = ""
    step: int | None = None
    batch: int | None = None
    cohort: int | None = None
    closed: bool = False

    @property
    def turn(self) -> int:
        """Turns of its episode that are over: the model spoke and the tools answered."""
        return len(self.past) // 2


@dataclass(frozen=True, slots=True)
class Generated:
    """A trajectory, all turns of it: its opaque bytes, and the oldest policy version of its new tokens (-1: none)."""

    payload: bytes
    min_version: int


@dataclass(frozen=True, slots=True)
class Scored:
    """Rewards by objective; every value finite."""

    rewards: dict[str, float]


@dataclass(frozen=True, slots=True)
class Continued:
    """The tools spoke: the trajectory with what they said, opaque bytes. The episode is to be generated further."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """The sample can never be done, and why; not for faults of the infrastructure, which give the lease
    back."""

    why: str


Outcome = Generated | Scored | Continued | Refused


def first_line(text: str, most: int = 300) -> str:
    """The first line of what a program said, printable and not longer than `most` characters."""
    line = next(iter(text.strip().splitlines()), "")
    return "".join(char if char.isprintable() else "?" for char in line[:most])


def reason_of(why: str) -> str:
    """The part of a reason by which samples are counted: its first line, up to a colon and a space."""
    return first_line(why, 100).partition(": ")[0]
