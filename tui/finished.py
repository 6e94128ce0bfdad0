"""A run that is over as a feed: its journal, its configuration, its ledger and its logs, with a time slider."""

import threading
import time
from concurrent.futures import Future
from importlib import import_module
from typing import Final

from midflight.kernel.client import Unreachable
from midflight.kernel.rundir import RunDir
from midflight.kernel.sample_files import StepSamples, list_steps, read_step
from midflight.messages.base import Message
from midflight.messages.control import Refused
from midflight.messages.samples import LedgerGet, LedgerStatus

from .checkpoints import Checkpoints
from .facts import About, Batch, Fact
from .history import Declared, read_past
from .host import HostSample, disk_use
from .rebuild import Rebuild

PIECE: Final = 20_000
"""Facts handed out in one go, so that a long run does not hold up the screen."""


class FileFeed:
    """See `facts.Feed`. The end of the run is shown first."""

    def __init__(self, about: About) -> None:
        self.about = about
        self._facts: list[Fact] = []
        self._declared: list[tuple[int, Declared]] = []
        """After how many facts which knob was declared."""
        self._read = False
        self._problem = ""
        self._position: int | None = None
        """Where the slider stands; None: at the end."""
        self._given = 0
        self._rebuild = self._fresh()
        self._kept: Checkpoints[Rebuild] = Checkpoints()
        self._wants = (False, False)
        self._ledger: LedgerStatus | None = None
        self._asked = False
        self._shown: set[str] = set()
        self._leaving = False
        self._thread = threading.Thread(target=self._load, name="feed", daemon=True)

    def start(self) -> None:
        """See `Feed`."""
        self._thread.start()

    def stop(self) -> None:
        """See `Feed`."""
        self._leaving = True
        if self._thread.is_alive():
            self._thread.join(5.0)

    def take(self) -> Batch:
        """See `Feed`."""
        batch = Batch(over=True, reading=not self._read, problem=self._problem)
        target = len(self._facts) if self._position is None else min(self._position, len(self._facts))
        if target < self._given:
            self._go_back(target, batch)
        batch.facts = self._facts[self._given : min(target, self._given + PIECE)]
        self._fold(batch.facts)
        batch.reading = batch.reading or self._given < target
        if self._read and self._given == len(self._facts) > 0:
            batch.ended = True
            batch.silent_s = max(0.0, time.time() - self._facts[-1].ns / 1e9)
        if batch.facts or batch.restart:
            batch.status, batch.knobs, batch.controllers = self._rebuild.answers()
        self._extras(batch)
        return batch

    def _go_back(self, target: int, batch: Batch) -> None:
        """To the nearest moment before that is kept."""
        batch.restart, batch.begin = True, self._kept.before(target)
        kept = self._kept.at(batch.begin)
        self._given, self._rebuild = batch.begin, kept.copy() if kept else self._fresh()
        self._shown.clear()

    def _fold(self, facts: list[Fact]) -> None:
        for begin, end in self._kept.spans(self._given, len(facts)):
            for fact in facts[begin:end]:
                self._rebuild.fold(fact)
            self._given += end - begin
            if self._kept.due(self._given):
                self._kept.put(self._given, self._rebuild.copy())

    def want(self, ledger: bool, host: bool) -> None:
        """See `Feed`."""
        self._wants = (ledger, host)

    def ask(self, port: str, message: Message) -> "Future[Message]":
        """Only the ledger of a run that is over can be asked."""
        future: Future[Message] = Future()
        if not isinstance(message, LedgerGet):
            future.set_result(Refused(code="over", why="this run is over: it can be looked at, not changed"))
            return future

        def read() -> None:
            try:
                future.set_result(self._offline(message.sample))
            except Exception as error:  # whatever the store says is wrong belongs on the screen
                future.set_exception(error)

        threading.Thread(target=read, name="ledger", daemon=True).start()
        return future

    def steps(self) -> list[int]:
        """See `Feed`."""
        return list_steps(self.about.path)

    def samples(self, step: int) -> StepSamples:
        """See `Feed`."""
        return read_step(self.about.path, step)

    def length(self) -> int:
        """See `Feed`."""
        return len(self._facts)

    def seek(self, position: int) -> None:
        """See `Feed`."""
        self._position = None if position >= len(self._facts) else max(0, position)

    def _load(self) -> None:
        try:
            for told in read_past(self.about.path):
                if isinstance(told, Fact):
                    self._facts.append(told)
                else:
                    self._declared.append((len(self._facts), told))
                if self._leaving:
                    return
        except (OSError, ValueError, KeyError) as error:  # what could be read is shown
            self._problem = f"{self.about.path}: {type(error).__name__}: {error}"
        self._read = True

    def _fresh(self) -> Rebuild:
        return Rebuild(self.about.run, self.about.config, self._declared)

    def _extras(self, batch: Batch) -> None:
        """The ledger and the disk, as they are now: once each, after they were first wanted."""
        if self._wants[0] and not self._asked:
            self._asked = True
            self.ask("data", LedgerGet()).add_done_callback(self._balanced)
        if self._ledger is not None and "ledger" not in self._shown:
            self._shown.add("ledger")
            batch.ledger = self._ledger
        if self._wants[1] and "host" not in self._shown:
            self._shown.add("host")
            at = self._facts[-1].ns if self._facts else 0
            batch.host = HostSample(at, disk=disk_use(self.about.path))

    def _balanced(self, future: "Future[Message]") -> None:
        if future.exception() is None and isinstance(answer := future.result(), LedgerStatus):
            self._ledger = answer

    def _offline(self, sample: int | None) -> LedgerStatus:
        path = RunDir(self.about.path).ledger_db
        if not path.exists():
            raise Unreachable(f"{path}: no ledger here")
        # By name: the screens do not depend on services.
        found: LedgerStatus = import_module("midflight.services.ledger.status").offline(path, sample)
        return found
