"""What a learner tells people: each remark once, until it ceases to hold, or in growing distances."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from midflight.kernel.config.errors import suggest

from .packs.examples import TOLD, Examples

Note = Callable[[str, str], None]


class Remarks:
    """`note(level, text)` takes them."""

    def __init__(self, note: Note) -> None:
        self._note = note
        self._alarmed = self._weighed = False
        self._lacked: set[str] = set()

    def gap(self, metrics: Mapping[str, float], limit: float | None) -> None:
        """The engine and the learner begin, or cease, to disagree about the same weights."""
        gap = metrics.get("logprob_gap/mean")
        if limit is None or gap is None or (gap > limit) == self._alarmed:
            return
        self._alarmed = gap > limit
        most = metrics["logprob_gap/max"]
        text = f"log-probs of engine and learner differ by {gap:.2g} nats on average, {most:.2g} at most"
        if self._alarmed:
            self._note("warning", f"{text}: beyond logprob_gap_alarm {limit:g}")
        else:
            self._note("info", f"{text}: within logprob_gap_alarm {limit:g} again")

    def weights(self, weighed: Iterable[str], named: Collection[str]) -> None:
        """A weight that no reward has: most likely a slip of the pen."""
        for name in () if self._weighed else sorted(set(weighed) - set(named)):
            hint = suggest(name, named)
            self._note("warning", f"objective_weights names {name!r}; reward_fn gave {', '.join(sorted(named))}{hint}")
        self._weighed = True

    def lacking(self, names: Iterable[str]) -> None:
        """An objective that only some samples name: the others count as if it were 0."""
        for name in names:
            if name not in self._lacked:
                self._lacked.add(name)
                text = f"reward_fn names {name!r} for some samples only: it is 0 in the weighted reward of the others,"
                self._note("warning", f"{text} and its mean is over those that name it")


class RefusedRows:
    """Rows that cannot be used: the first few one by one, then their number, at 10, 100 and so on, and at the end."""

    def __init__(self, note: Note) -> None:
        self._note = note
        self._counted, self._next = 0, 10

    def tell(self, examples: Examples[Any, Any], over: bool = False) -> None:
        """What there is to tell of the rows drawn so far; `over`: no more of them will be."""
        for why in examples.bad:
            self._note("warning", f"row refused: {why}")
        examples.bad.clear()
        refused, rows = examples.refused, len(examples.rows)
        if refused == self._counted or not (over or refused >= self._next or examples.drawn >= rows):
            return
        self._counted, self._next = refused, 10 ** len(str(refused))
        some = examples.drawn < rows
        self._note("warning", f"{refused:,} of {min(examples.drawn, rows):,} rows refused{' so far' * some}")

    def held_out(self, bad: Sequence[str], of: int) -> None:
        """The same of `of` held-out rows, which are all read at the start."""
        for why in bad[:TOLD]:
            self._note("warning", f"held-out row refused: {why}")
        if bad:
            self._note("warning", f"{len(bad):,} of {of:,} held-out rows refused")
