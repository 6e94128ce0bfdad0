"""How long what is generated, trained and dropped is: does the staleness rule starve long samples?

Tokens of prompt and completion of every training sample that this process of the ledger has seen generated, counted in
bins 1/8 of an octave wide. `kept` is the part of the settled samples that was trained and not dropped as stale, and
`kept_long_*` the same of their longest tenth: where it is less, long samples are starved.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from midflight.messages.base import Scalar

from .changes import Changes
from .payload import HEAD, tokens_of
from .row import EVAL_BASE
from .states import State

TRAINED: Final = "trained"
STALE: Final = "stale"
GENERATED: Final = "generated"
STARVED: Final = ("stale", "group incomplete")
"""How the reason begins of a sample that was dropped for its age, or for that of the rest of its group."""
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "max": 1.0}
PLACES: Final = (GENERATED, TRAINED, STALE)
LONG: Final = 0.9
"""Quantile from which on a sample is among the longest."""


class Histogram:
    """Numbers of tokens in bins: exact below 16, then 8 bins an octave. Named by the least number of a bin."""

    def __init__(self) -> None:
        self.bins: Counter[int] = Counter()

    def add(self, tokens: int, times: int = 1) -> None:
        """Count a sample; -1 takes it out again."""
        shift = max(0, tokens.bit_length() - 4)
        self.bins[tokens >> shift << shift] += times

    @property
    def n(self) -> int:
        """How many samples are counted."""
        return self.bins.total()

    def quantile(self, share: float) -> int:
        """The bin below or in which so many lie; 0 of none."""
        left = share * self.n
        for least in sorted(least for least, n in self.bins.items() if n > 0):
            left -= self.bins[least]
            if left <= 0:
                return least
        return 0

    def at_least(self, tokens: int) -> int:
        """How many are in the bin of `tokens` or above."""
        return sum(n for least, n in self.bins.items() if least >= tokens)


@dataclass(slots=True)
class Sample:
    """A sample that is not closed: tokens of prompt and completion, and what it counts as besides generated."""

    prompt: int
    completion: int
    place: str = ""


def kept(trained: Histogram, stale: Histogram, quantile: float = 0.0) -> float | None:
    """The part trained of those settled, from their `quantile` of length on; None when there are none."""
    both = Histogram()
    both.bins = trained.bins + stale.bins
    least = both.quantile(quantile) if quantile else 0
    return trained.at_least(least) / settled if (settled := both.at_least(least)) else None


@dataclass(slots=True)
class Lengths:
    """The counts, kept by what the store has written. Memory: the samples that are not closed."""

    prompts: dict[str, Histogram] = field(default_factory=lambda: {place: Histogram() for place in PLACES})
    completions: dict[str, Histogram] = field(default_factory=lambda: {place: Histogram() for place in PLACES})
    _samples: dict[int, Sample] = field(default_factory=dict)

    def note(self, changes: Changes) -> None:
        """Take what is about to be written; when it is tried again, that changes nothing."""
        self.generated(changes.payloads)
        self.moved((id_, state, why) for id_, state, _, _, why in changes.life)
        for row in changes.rows.values():
            if row.closed:
                self._samples.pop(row.id, None)

    def generated(self, blobs: Mapping[int, bytes]) -> None:
        """New trajectories, or longer ones of the same samples."""
        for id_, blob in blobs.items():
            if id_ < EVAL_BASE:
                if old := self._samples.get(id_):
                    self._count(old, GENERATED, -1)
                    self._count(old, old.place, -1)
                self._samples[id_] = Sample(*measured(blob))
                self._count(self._samples[id_], GENERATED)

    def moved(self, moves: Iterable[tuple[int, State, str]]) -> None:
        """(sample, state, why), in their order: what is trained again after a restore counts once."""
        for id_, state, why in moves:
            sample = self._samples.get(id_)
            if sample is None:
                continue
            stale = state is State.FILTERED and why.startswith(STARVED)
            place = TRAINED if state is State.TRAINED else STALE if stale else ""
            if place != sample.place:
                self._count(sample, sample.place, -1)
                self._count(sample, place)
                sample.place = place

    def told(self) -> dict[str, Scalar]:
        """Flat, for events and status: `n` and quantiles of each, and the parts kept. Empty before the first sample."""
        body: dict[str, Scalar] = {}
        for kind, histograms in (("prompt", self.prompts), ("completion", self.completions)):
            for place, histogram in histograms.items():
                if histogram.n:
                    body[f"{place}/n"] = histogram.n
                    body |= {f"{place}/{kind}_{name}": histogram.quantile(q) for name, q in QUANTILES.items()}
            body[f"kept_long_{kind}"] = kept(histograms[TRAINED], histograms[STALE], LONG)
        body["kept"] = kept(self.prompts[TRAINED], self.prompts[STALE])
        return {name: value for name, value in body.items() if value is not None}

    def _count(self, sample: Sample, place: str, times: int = 1) -> None:
        if place:
            self.prompts[place].add(sample.prompt, times)
            self.completions[place].add(sample.completion, times)


def measured(blob: bytes) -> tuple[int, int]:
    """Tokens of a stored trajectory that were given to the model, and that it sampled: the mask's zeros and ones."""
    tokens = tokens_of(blob)
    mask = HEAD.size + 4 * tokens
    sampled = blob.count(b"\1", mask, mask + tokens)
    return tokens - sampled, sampled
