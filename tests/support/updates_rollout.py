"""The real rollouts, which note when a version came into force; and two that do it wrongly, for negative controls."""

import json
import time
from collections.abc import Mapping
from typing import TextIO, cast

from torch import Tensor

from midflight.services.rollout.engine import Engine
from midflight.services.rollout.service import Rollout
from support.updates_config import WatchedConfig

APPLIED = "applied.jsonl"


class Noting(Rollout):
    """Writes version and time (monotonic, ns) into APPLIED of the run directory."""

    _noted = -1
    _notes: TextIO | None = None

    def want(self, taken: int = 0) -> None:
        """The version that is in force is told to the ledger here, and so to us."""
        if self.engine.version > self._noted:
            self._noted = self.engine.version
            if self._notes is None:
                self._notes = (self.settings.run_dir / APPLIED).open("a")
            self._notes.write(json.dumps({"version": self._noted, "ns": time.monotonic_ns()}) + "\n")
            self._notes.flush()
        super().want(taken)


class Watched(Noting):
    """The embedded engine."""

    def start(self) -> None:
        """The mutants spoil what they are called after."""
        super().start()
        match cast(WatchedConfig, self.config).mutant:
            case "late":
                _label_late(self.embedded)
            case "torn":
                _load_half(self.embedded)


def _label_late(engine: Engine) -> None:
    """The first token of new weights is called one of the old."""
    load = engine.load_weights

    def late(state: Mapping[str, Tensor], version: int) -> None:
        load(state, version)
        for live in engine._batch.rows:
            begin, new = live.versions[-1]
            live.versions[-1] = (begin + 1, new)

    engine.load_weights = late  # type: ignore[method-assign]


def _load_half(engine: Engine) -> None:
    """Every other tensor stays what it was."""
    load, before = engine.load_weights, dict[str, Tensor]()

    def torn(state: Mapping[str, Tensor], version: int) -> None:
        mixed = {name: before.get(name, t) if at % 2 else t for at, (name, t) in enumerate(state.items())}
        load(mixed, version)
        before.update(state)

    engine.load_weights = torn  # type: ignore[method-assign]
