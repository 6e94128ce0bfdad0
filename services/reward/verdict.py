"""What comes of a reward job: a verdict, a fault of the user's program, or a fault of ours. Never a silent zero."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from midflight.kernel.mistake import UserMistake

from .sandbox.program import WrongResult, named_rewards, tool_messages

Blame = Literal["raised", "returned", "time", "memory", "exit", "unreachable"]
"""Why a program is at fault: it raised, returned what it must not, took too much time or memory, died, or raised a
ConnectionError (no fault of its own where it was given the network)."""


@dataclass(frozen=True, slots=True)
class Job:
    """One call of `reward_fn(messages, answer)`. `id` is the sample's (0 <= id < 2**64).

    With `interact`, the file's `interact(messages)` is called first, if it defines one, and `reward_fn` only when that
    returns no messages. `state` (JSON) is the episode's, and `call` the same text at every try of this turn.
    """

    id: int
    messages: Sequence[Mapping[str, str]]
    answer: object
    interact: bool = False
    state: dict[str, object] = field(default_factory=dict)
    call: str = ""


@dataclass(frozen=True, slots=True)
class Scored:
    """The rewards by objective (a bare number is named "reward"), all finite; `seconds` it took; the last `state`."""

    rewards: dict[str, float]
    seconds: float
    state: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Acted:
    """What `interact` returned, never empty: messages {"role", "content"} that go on with the episode, its `state`."""

    messages: list[dict[str, str]]
    state: dict[str, object]
    seconds: float


@dataclass(frozen=True, slots=True)
class ProgramFault:
    """The user's function is to blame; `tail` is the end of its traceback or of what it printed; `seconds` it ran."""

    blame: Blame
    why: str
    tail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class InfrastructureFault:
    """Nobody knows what the function would have said; the sample deserves another try elsewhere.

    `strike`: the sandbox went down while it ran, for which nothing is known against it but that.
    """

    why: str
    strike: bool = False


Outcome = Scored | Acted | ProgramFault | InfrastructureFault


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of the job `id`."""

    id: int
    outcome: Outcome


class RewardFileError(UserMistake):
    """The reward file cannot be used at all; the text begins with file:line."""


def checked_rewards(rewards: object) -> dict[str, float]:
    """The rewards that a worker or a service reports, whoever wrote them there. Raises ValueError."""
    try:
        return named_rewards(rewards)
    except WrongResult as error:
        raise ValueError(str(error)) from None


def checked_messages(messages: object) -> list[dict[str, str]]:
    """The messages of `interact` that one reports, likewise. Raises ValueError."""
    try:
        said = tool_messages(messages)
    except WrongResult as error:
        raise ValueError(str(error)) from None
    if not said:
        raise ValueError("no messages")
    return said
