"""What a feed hands to the screens: facts of the event stream, answers of the kernel and the ledger, and their age."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from midflight.kernel.sample_files import StepSamples
from midflight.messages.base import Message, Scalar
from midflight.messages.control import Status
from midflight.messages.knobs import Knobs
from midflight.messages.live import Controllers
from midflight.messages.samples import LedgerStatus

from .host import HostSample


class Fact(NamedTuple):
    """One event of the stream, however it was read. `ns` is wall clock, for people."""

    seq: int
    ns: int
    source: str
    topic: str
    step: int | None
    body: Mapping[str, Scalar]

    def text(self, key: str) -> str:
        """A field as text, empty when absent."""
        value = self.body.get(key)
        return "" if value is None else str(value)

    def number(self, key: str) -> float | None:
        """A field as a number, None when it is none."""
        value = self.body.get(key)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class About:
    """What does not change while a run is looked at."""

    path: Path
    run: str
    config: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Any] = field(default_factory=dict)
    writable: bool = True
    """Whether anything can be asked of it: false for a run that is over."""
    logs: Path | None = None


@dataclass(slots=True)
class Batch:
    """Everything that came since the last `take`; newest wins for the answers."""

    facts: list[Fact] = field(default_factory=list)
    status: Status | None = None
    knobs: Knobs | None = None
    controllers: Controllers | None = None
    ledger: LedgerStatus | None = None
    host: HostSample | None = None
    silent_s: float | None = None
    """Seconds since the kernel last answered; None when there is no link."""
    over: bool = False
    gap: bool = False
    """Facts were lost that nobody holds any more."""
    restart: bool = False
    """Another moment is to be shown: these facts follow the first `begin` ones, whatever was folded meanwhile."""
    begin: int = 0
    ended: bool = False
    """What is shown is the end of a run that is over: nothing lives any more."""
    reading: bool = False
    """The past is still being read."""
    problem: str = ""
    """Why nothing more will come."""


class Feed(Protocol):
    """Where the data comes from: a living run, the files of one that is over, or a test."""

    about: About

    def start(self) -> None:
        """Begin to collect."""

    def stop(self) -> None:
        """End; what was collected is dropped."""

    def take(self) -> Batch:
        """What came since the last call. Never blocks."""

    def want(self, ledger: bool, host: bool) -> None:
        """Which costly answers the visible screen shows."""

    def ask(self, port: str, message: Message) -> "Future[Message]":
        """Send a request; the future fails with `Unreachable`."""

    def steps(self) -> list[int]:
        """Steps that have archived samples."""

    def samples(self, step: int) -> StepSamples:
        """The archived samples of a step. Raises SampleFileError."""

    def length(self) -> int:
        """How many facts the time slider spans; 0 without one."""

    def seek(self, position: int) -> None:
        """Show the run as it was after so many facts."""
