"""The requests in the engine's rows, on the host: who is where, who has ended, what came out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .request import Completion, Request, StopReason
from .stopping import StopText


@dataclass(slots=True)
class Live:
    """A request in a row: its output slot, stop ids, tokens so far, and (tokens before it, version) of its weights.

    stop_text: asked after every token, if it has stop texts.
    """

    request: Request
    slot: int
    stops: frozenset[int]
    versions: list[tuple[int, int]]
    stop_text: StopText | None = None
    tokens: list[int] = field(default_factory=list)

    @property
    def stopped(self) -> bool:
        """Whether its newest token ended it, by itself or by the text it completed."""
        return self.tokens[-1] in self.stops or (self.stop_text is not None and self.stop_text(self.tokens))

    @property
    def length(self) -> int:
        """Tokens of prompt and response so far."""
        return len(self.request.prompt) + len(self.tokens)

    def sequence(self) -> list[int]:
        """Prompt and response so far."""
        return [*self.request.prompt, *self.tokens]

    def complete(self, logprobs: list[float]) -> Completion:
        """The completion, given the log-probs of `tokens`; cancelled when neither a stop id nor the limit ended it."""
        reason: StopReason = "cancelled"
        if self.stopped:
            reason = "stop"
        elif len(self.tokens) == self.request.max_new_tokens:
            reason = "length"
        versions: list[int] = []
        ends = [begin for begin, _ in self.versions[1:]] + [len(self.tokens)]
        for end, (_, version) in zip(ends, self.versions, strict=True):
            versions += [version] * (end - len(versions))
        return Completion(self.request.id, self.tokens, logprobs, versions, reason)


class Batch:
    """Rows [0, n) of live requests. What a step asks of all of them is kept up to date and not searched for."""

    def __init__(self) -> None:
        self.rows: list[Live] = []
        self.longest = 0
        self._stops: frozenset[int] = frozenset()
        self._watched = 0
        """Rows with stop texts."""
        self._greedy = 0
        self._steps_to_limit = 0

    @property
    def greedy(self) -> bool:
        """Whether any request decodes greedily."""
        return self._greedy > 0

    def admit(self, lives: Sequence[Live]) -> None:
        """Append rows that have no token yet."""
        if not self.rows:
            self._stops = frozenset()
        self.rows += lives
        self._stops = self._stops.union(*(live.stops for live in lives))
        self._greedy += sum(live.request.temperature == 0 for live in lives)
        self._watched += sum(live.stop_text is not None for live in lives)
        self._survey()

    def extend(self, first: int, tokens: Sequence[int]) -> list[int]:
        """Give each row from `first` on its next token; return the rows that this ends, ascending."""
        rows = self.rows[first:]
        for live, token in zip(rows, tokens, strict=True):
            live.tokens.append(token)
        if first:
            self._survey()
        else:
            self._steps_to_limit -= 1
            self.longest += 1
        hits = [row for row, token in enumerate(tokens, first) if token in self._stops]
        ended = {row for row in hits if self.rows[row].tokens[-1] in self.rows[row].stops}
        if self._watched:
            watched = (row for row in range(first, len(self.rows)) if self.rows[row].stop_text and row not in ended)
            ended.update(row for row in watched if self.rows[row].stopped)
        if self._steps_to_limit <= 0:
            ended.update(r for r, live in enumerate(self.rows) if len(live.tokens) == live.request.max_new_tokens)
            self._survey()
        return sorted(ended)

    def remove(self, rows: Sequence[int]) -> tuple[list[Live], list[int], list[int]]:
        """Take `rows` (ascending) out and fill the gaps: row `source[i]` is now row `target[i]`."""
        gone = [self.rows[row] for row in rows]
        left = len(self.rows) - len(rows)
        target = [row for row in rows if row < left]
        source = sorted(set(range(left, len(self.rows))).difference(rows))
        for to, origin in zip(target, source, strict=True):
            self.rows[to] = self.rows[origin]
        del self.rows[left:]
        self._greedy -= sum(live.request.temperature == 0 for live in gone)
        self._watched -= sum(live.stop_text is not None for live in gone)
        if any(live.length >= self.longest for live in gone):
            self._survey()
        return gone, target, source

    def _survey(self) -> None:
        """Length of the longest row, and steps until the first row reaches its limit."""
        self.longest = max((live.length for live in self.rows), default=0)
        left = (live.request.max_new_tokens - len(live.tokens) for live in self.rows)
        self._steps_to_limit = min(left, default=0)
