"""One response on its way through the servers, which may be several: what it has so far, and what is still to come."""

import math
from dataclasses import dataclass, field
from typing import Any

from midflight.services.rollout.request import Completion, Request, StopReason
from midflight.services.rollout.stopping import StopText

from .reply import Piece


@dataclass(slots=True, eq=False)
class Job:
    """A request, its tokens so far, and how many servers have died with it in hand.

    Servers read no text: what they sample beyond a stop text is thrown away here.
    """

    request: Request
    stop_ids: tuple[int, ...]
    vocabulary: int
    """Token ids lie in [0, vocabulary)."""
    stop_text: StopText | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    deaths: int = 0

    @property
    def room(self) -> int:
        """How many tokens may still come."""
        return self.request.max_new_tokens - len(self.tokens)

    def body(self, rid: str, cache_key: str | None) -> dict[str, Any]:
        """The body of `/generate` for what is missing. Every parameter that a model directory could change is said."""
        sampling = {
            "max_new_tokens": self.room,
            "temperature": self.request.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "stop_token_ids": list(self.stop_ids),
        }
        body = {
            "rid": rid,
            "input_ids": [*self.request.prompt, *self.tokens],
            "sampling_params": sampling,
            "return_logprob": True,
            "logprob_start_len": -1,
            "stream": False,
        }
        return body if cache_key is None else body | {"extra_key": cache_key}

    def check(self, piece: Piece) -> None:
        """Raises FloatingPointError when a log-prob is not finite: the weights are not fit to generate with."""
        if not math.isfinite(sum(piece.logprobs)):
            raise FloatingPointError(f"request {self.request.id}: log-probs are not finite")

    def extend(self, piece: Piece) -> Completion | None:
        """Add what a server sampled; the completion when nothing is missing."""
        before = len(self.tokens)
        self.tokens += piece.tokens
        self.logprobs += piece.logprobs
        self.versions += piece.versions
        if end := self._text_ends(before):
            return Completion(self.request.id, self.tokens[:end], self.logprobs[:end], self.versions[:end], "stop")
        stopped = piece.ending == "stop" or (bool(self.tokens) and self.tokens[-1] in self.stop_ids)
        if piece.ending == "abort" and not stopped and self.room:
            return None
        reason: StopReason = "stop" if stopped else "length"
        return Completion(self.request.id, self.tokens, self.logprobs, self.versions, reason)

    def _text_ends(self, before: int) -> int:
        """How many tokens it takes to the first stop text that ends behind the first `before`; 0: there is none."""
        if self.stop_text is None:
            return 0
        ends = range(before + 1, len(self.tokens) + 1)
        return next((end for end in ends if self.stop_text(self.tokens[:end])), 0)
