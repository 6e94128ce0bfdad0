"""What the servers' thread tells the service."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from midflight.services.rollout.request import Completion


@dataclass(frozen=True, slots=True)
class Lost:
    """A request that ended without a completion: given back or, with `refuse`, impossible."""

    id: int
    why: str
    refuse: bool = False


@dataclass(frozen=True, slots=True)
class BadOffer:
    """Weights that were published and cannot be used."""

    version: int
    why: str


@dataclass(frozen=True, slots=True)
class Took:
    """Weights that were published and are whole."""

    version: int
    step: int


@dataclass(frozen=True, slots=True)
class Said:
    """For people; and a reason to look at what is serving."""

    level: Literal["debug", "info", "warning", "error"]
    text: str


Outcome = Completion | Lost | BadOffer | Took | Said | BaseException
Tell = Callable[[Outcome], None]
