"""The states of a sample, the three leased stages it passes, and every legal move.

         generate             score               train
    issued -> running -> generated -> scoring -> ready -> leased -> trained     split "train"
                                              -> evaluated                      split "eval"

An episode of several turns goes from `scoring` back to `issued`, with its trajectory so far, whenever the tools spoke.
A lease that ends without an answer goes one step back. `refused` is reachable from every open state, `filtered` from
`ready`. A restore re-opens `trained`; deterministic mode regenerates unfinished cohorts from `issued`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

StageName = Literal["generate", "score", "train"]


class State(StrEnum):
    """Where a sample is. Exactly one at any time."""

    ISSUED = "issued"
    RUNNING = "running"
    GENERATED = "generated"
    SCORING = "scoring"
    READY = "ready"
    LEASED = "leased"
    TRAINED = "trained"
    FILTERED = "filtered"
    REFUSED = "refused"
    EVALUATED = "evaluated"


class Split(StrEnum):
    """What a sample is for: training, or measuring on held-out prompts."""

    TRAIN = "train"
    EVAL = "eval"


class Verdict(StrEnum):
    """What the ledger says to an answer: done (perhaps earlier), without effect, or never heard of."""

    OK = "ok"
    STALE = "stale"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Stage:
    """One leased step: a sample waits, is leased, and is done. `index` is its place in `Row.done`."""

    name: StageName
    index: int
    waiting: State
    leased: State
    done: State


STAGES: dict[StageName, Stage] = {
    "generate": Stage("generate", 0, State.ISSUED, State.RUNNING, State.GENERATED),
    "score": Stage("score", 1, State.GENERATED, State.SCORING, State.READY),
    "train": Stage("train", 2, State.READY, State.LEASED, State.TRAINED),
}
STAGE_OF_LEASE: dict[State, Stage] = {stage.leased: stage for stage in STAGES.values()}

TERMINAL = frozenset({State.FILTERED, State.REFUSED, State.EVALUATED})
OPEN = frozenset(State) - TERMINAL - {State.TRAINED}

_S = State
LEGAL: dict[State, frozenset[State]] = {
    _S.ISSUED: frozenset({_S.RUNNING, _S.REFUSED, _S.TRAINED}),
    _S.RUNNING: frozenset({_S.GENERATED, _S.ISSUED, _S.REFUSED, _S.TRAINED}),
    _S.GENERATED: frozenset({_S.SCORING, _S.ISSUED, _S.REFUSED, _S.TRAINED}),
    _S.SCORING: frozenset({_S.READY, _S.EVALUATED, _S.GENERATED, _S.ISSUED, _S.REFUSED, _S.TRAINED}),
    _S.READY: frozenset({_S.LEASED, _S.FILTERED, _S.ISSUED, _S.REFUSED, _S.TRAINED}),
    _S.LEASED: frozenset({_S.TRAINED, _S.READY, _S.REFUSED}),
    _S.TRAINED: frozenset({_S.READY}),
    _S.FILTERED: frozenset({_S.ISSUED}),
    _S.EVALUATED: frozenset({_S.ISSUED}),
    _S.REFUSED: frozenset(),
}
"""Moves a sample may make. Open -> `trained` other than from `leased` happens only when a restored checkpoint
names the sample; `filtered` and `evaluated` -> `issued` only when deterministic mode regenerates a cohort."""
