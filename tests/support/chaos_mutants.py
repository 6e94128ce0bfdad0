"""Ledgers with one rule of the protocol taken out, under which no chaos run may stay green; and one on a full disk."""

import os
import signal
from typing import cast

from midflight.kernel.loop import Loop
from midflight.messages.samples import Ok, Trained
from midflight.services.ledger.book import Book
from midflight.services.ledger.grants import Grant
from midflight.services.ledger.row import Row
from midflight.services.ledger.service import Ledger
from midflight.services.ledger.states import Stage, Verdict
from support.chaos_config import TightLedgerConfig


class TightLedger(Ledger):
    """SQLite meets its own limit on pages, which it reports as it reports a full disk."""

    _room = False

    def start(self) -> None:
        """Shrink the disk."""
        super().start()
        self._limit(cast(TightLedgerConfig, self.config).pages)

    def work(self, now: float) -> bool:
        """Look whether somebody made room."""
        if not self._room and (self.settings.run_dir / "room").exists():
            self._room = True
            self._limit(1 << 30)
        return super().work(now)

    def _limit(self, pages: int) -> None:
        self.store._db.execute(f"pragma max_page_count = {pages}")


class EagerLedger(Ledger):
    """Acknowledges before it commits; dies once, after it has so acknowledged a `trained`."""

    def _flush(self) -> bool:
        fatal = any(
            isinstance(reply, Ok) and letter.received.envelope.k == Trained.KIND for letter, reply in self._replies
        )
        for letter, message in self._replies:
            letter.reply(message)
        self._replies.clear()
        flag = self.settings.run_dir / "died-once"
        if fatal and not flag.exists():
            flag.touch()
            assert isinstance(self.bus, Loop)
            self.bus.flush(5.0)  # back when the answers have left; the transaction is never written
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._flush()


class EpochlessBook(Book):
    """Every answer for a leased sample counts."""

    def stands(self, row: Row, stage: Stage, epoch: int, holder: str) -> Verdict | None:
        """Without a look at epoch or holder."""
        return None if row.state is stage.leased else Verdict.OK if row.done[stage.index] else Verdict.STALE


class EpochlessLedger(Ledger):
    """Uses `EpochlessBook`."""

    def start(self) -> None:
        """Swap the rules under a loaded book."""
        super().start()
        cast(object, self.book).__class__ = EpochlessBook


class FaithfulBook(Book):
    """The dead keep their credit, and what is granted to them counts as sent."""

    def holder_died(self, holder: str) -> int:
        """End its leases, and nothing else."""
        credits = {name: credit for name in self.credits for credit in self.credits[name].live(self.now)}
        ended = super().holder_died(holder)
        for name, credit in credits.items():
            if credit.holder == holder:
                self.credits[name].want(holder, credit.n, credit.version, credit.at)
        return ended

    def match(self, now: float) -> list[Grant]:
        """Remember the time."""
        self.now = now
        return super().match(now)

    def unsent(self, grant: Grant) -> None:
        """Nobody looks whether it could be sent."""


class FaithfulLedger(Ledger):
    """Uses `FaithfulBook`."""

    def start(self) -> None:
        """Swap the rules under a loaded book."""
        super().start()
        cast(object, self.book).__class__ = FaithfulBook
