"""A feed of fixed data, and an app on it that can be driven without a clock."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from midflight.kernel.sample_files import SampleFileError, StepSamples
from midflight.messages.base import Message
from midflight.messages.control import Done, Refused
from midflight.messages.knobs import KnobOk, KnobSet
from midflight.messages.live import SwapOk
from midflight.messages.samples import LedgerGet
from midflight.tui.app import MidflightApp, Options, binding_ids
from midflight.tui.facts import About, Batch, Fact
from midflight.tui.keys import keymap_path, load_keymap

from . import tui_data as data


class FakeFeed:
    """Gives one full batch, then nothing new; remembers what it was asked."""

    def __init__(self, folder: Path, *, writable: bool = True, facts: Sequence[Fact] | None = None) -> None:
        self.about = About(
            folder, "demo-1a2b3c4d", data.CONFIG, data.ORIGINS, writable, data.write_logs(folder / "logs")
        )
        self.facts = data.story() if facts is None else list(facts)
        self.asked: list[tuple[str, Message]] = []
        self.refuse = ""
        self.wants: list[tuple[bool, bool]] = []
        self.sample_steps = [100, 120]
        self.pending = [self.full()]
        self.silent_s = 0.2
        self.position: int | None = None

    def full(self) -> Batch:
        """Everything at once."""
        return Batch(self.facts, data.status(), data.knobs(), data.controllers(), data.ledger(), data.host())

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""

    def take(self) -> Batch:
        """The next batch, or silence."""
        batch = self.pending.pop(0) if self.pending else Batch()
        batch.silent_s, batch.over = self.silent_s, not self.about.writable
        return batch

    def want(self, ledger: bool, host: bool) -> None:
        """Remembered."""
        self.wants.append((ledger, host))

    def ask(self, port: str, message: Message) -> "Future[Message]":
        """Answered at once."""
        self.asked.append((port, message))
        future: Future[Message] = Future()
        if self.refuse:
            future.set_result(Refused(code="no", why=self.refuse))
        elif isinstance(message, LedgerGet):
            future.set_result(data.ledger(message.sample))
        elif isinstance(message, KnobSet):
            future.set_result(KnobOk(knob=message.knob, value=message.value, version=8))
        elif message.KIND == "swap.start":
            future.set_result(SwapOk(slot="kl", number=1))
        else:
            future.set_result(Done(detail=""))
        return future

    def steps(self) -> list[int]:
        """Two."""
        return self.sample_steps

    def samples(self, step: int) -> StepSamples:
        """Those of the story."""
        if step not in self.sample_steps:
            raise SampleFileError(f"there are no samples of step {step}")
        return data.samples(step)

    def length(self) -> int:
        """A slider only when it is over."""
        return 0 if self.about.writable else len(self.facts)

    def seek(self, position: int) -> None:
        """The facts up to there, from the beginning."""
        self.position = max(0, min(position, len(self.facts)))
        batch = self.full()
        batch.facts, batch.restart = self.facts[: self.position], True
        self.pending.append(batch)


@contextmanager
def app_on(
    folder: Path, *, write: bool = True, writable: bool = True, facts: Sequence[Fact] | None = None
) -> Iterator[tuple[MidflightApp, FakeFeed]]:
    """An app that has not been started yet, and its feed."""
    feed = FakeFeed(folder, writable=writable, facts=facts)
    keymap = load_keymap(keymap_path(os.environ), binding_ids())
    yield MidflightApp(feed, Options(write=write, export_to=folder, keymap=keymap)), feed
